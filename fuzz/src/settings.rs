//! The node's configuration file.

use std::path::Path;

use kvasir_node::config::Settings;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let path = Path::new("node.yaml");
    let settings = match Settings::from_yaml(path, text) {
        Ok(settings) => settings,
        Err(error) => {
            assert!(error.to_string().starts_with("node.yaml"), "an error that names no file: {error}");
            return;
        }
    };
    assert_eq!(settings.clone().over(Settings::default()), settings);
    assert_eq!(Settings::default().over(settings.clone()), settings);
    let Ok(config) = settings.validate() else { return };
    // The output of `--print-config` means the same to the next node. It leaves out secrets.
    let printed = config.to_yaml();
    if printed.starts_with("# discovery.nats.") {
        return;
    }
    let again = Settings::from_yaml(path, &printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    let again = again.validate().unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(again, config, "{printed}");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let examples = [
        include_str!("../../examples/node.yaml"),
        include_str!("../../examples/nodes/dns.yaml"),
        include_str!("../../examples/nodes/kubernetes.yaml"),
        include_str!("../../examples/nodes/nats.yaml"),
        include_str!("../../examples/nodes/static.yaml"),
    ];
    // Without the comments, the rest is short enough to mutate.
    let bare = |text: &str| {
        let line = |line: &str| line.split(" #").next().unwrap_or_default().to_owned();
        text.lines().filter(|it| !it.trim_start().starts_with('#')).map(line).collect::<Vec<_>>().join("\n")
    };
    let small = [
        "{}",
        "name: a\nmaxMemory: 256Mi\nmaxMemoryPolicy: ttl-first\nvoters: 3\nlogFormat: json\n",
        "role: sidecar\npeerAddress: '[::1]:7071'\nadvertiseAddress: fd00::1\nswim: {probePeriod: 1s}\n",
        "discovery: {nats: {server: ['nats://a:1', 'tls://b:2'], user: u, passwordFile: /f}, kubernetes: {podLabels: {a: b}}}\n",
        "clientAdress: 1",
    ];
    examples.map(bare).into_iter().chain(small.map(str::to_owned)).map(String::into_bytes).collect()
}

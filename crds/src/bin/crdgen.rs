//! Prints the `CustomResourceDefinition` of `KvCluster` as YAML; `make crds` puts it into the chart.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let yaml = kvasir_crds::yaml()?;
    std::io::stdout().write_all(yaml.as_bytes())?;
    Ok(())
}

//! Line charts as SVG, with logarithmic axes and a handful of series.

use std::fmt::Write as _;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 52.0;
const COLOURS: [&str; 4] = ["#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e"];

/// One panel of a chart.
pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    pub(crate) series: Vec<(&'a str, Vec<(f64, f64)>)>,
}

/// Draws the panels side by side.
pub(crate) fn svg(x_axis: &str, panels: &[Panel]) -> String {
    let width = WIDTH * panels.len() as f64;
    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="11">
<rect width="{width}" height="{HEIGHT}" fill="#fff"/>"##
    );
    for (n, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, r#"<g transform="translate({},0)">"#, n as f64 * WIDTH);
        draw(&mut out, x_axis, panel);
        let _ = writeln!(out, "</g>");
    }
    out + "</svg>\n"
}

fn draw(out: &mut String, x_axis: &str, panel: &Panel) {
    let points = || panel.series.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        (low.log10(), high.log10())
    };
    let (x0, x1) = bounds(|p| p.0);
    let (y0, y1) = bounds(|p| p.1);
    // The y axis begins and ends at a power of ten.
    let (y0, y1) = (y0.floor(), y1.ceil().max(y0.floor() + 1.0));
    let x = |v: f64| MARGIN + (v.log10() - x0) / (x1 - x0) * (WIDTH - MARGIN - 24.0);
    let y = |v: f64| HEIGHT - MARGIN - (v.log10() - y0) / (y1 - y0) * (HEIGHT - 2.0 * MARGIN - 16.0);

    let _ = writeln!(out, r#"<text x="{MARGIN}" y="20" font-size="13" font-weight="bold">{}</text>"#, panel.title);
    for power in y0 as i32..=y1 as i32 {
        let value = 10f64.powi(power);
        let at = y(value);
        let _ = writeln!(
            out,
            r##"<path d="M{MARGIN} {at:.1}H{:.1}" stroke="#dee2e6"/><text x="{:.1}" y="{:.1}" text-anchor="end">{value}</text>"##,
            WIDTH - 24.0,
            MARGIN - 6.0,
            at + 4.0
        );
    }
    let mut ticks: Vec<f64> =
        panel.series.first().map(|(_, points)| points.iter().map(|p| p.0).collect()).unwrap_or_default();
    ticks.dedup();
    for tick in ticks {
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{tick}</text>"#,
            x(tick),
            HEIGHT - MARGIN + 18.0
        );
    }
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{x_axis}</text>"#,
        WIDTH / 2.0 + 14.0,
        HEIGHT - 14.0
    );
    for (n, (name, points)) in panel.series.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let line: Vec<_> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ =
            writeln!(out, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, line.join(" "));
        for p in points {
            let _ = writeln!(out, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(p.0), y(p.1));
        }
        let _ = writeln!(
            out,
            r#"<text x="{:.1}" y="{:.1}" fill="{colour}">{name}</text>"#,
            MARGIN + 8.0,
            40.0 + 14.0 * n as f64
        );
    }
}

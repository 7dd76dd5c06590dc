//! The figures as bars: a panel for each measure, a bar with its spread for each contender, as SVG that follows the reader's
//! light or dark mode.

use std::fmt::Write;

use crate::comparison::{Plan, Samples};
use crate::measure::Measure;
use crate::report::{Spread, micros};

/// One measure.
struct Panel {
    title: String,
    /// Contender, spread, and the median as it is printed.
    bars: Vec<(String, Spread, String)>,
}

/// Places, in the units of the picture.
const WIDTH: f64 = 760.0;
const LABELS: f64 = 150.0;
const NUMBERS: f64 = 90.0;
const ROW: f64 = 20.0;
const TITLE: f64 = 30.0;
const GAP: f64 = 14.0;

const STYLE: &str = "
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .number { fill: #59636e }
  .bar { fill: #a8b1bb }
  .ours { fill: #2f7d4f }
  .spread { stroke: #1f2328; stroke-width: 1 }
  .axis { stroke: #d1d9e0 }
  .page { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .number { fill: #9198a1 }
    .bar { fill: #59636e }
    .ours { fill: #4caf78 }
    .spread { stroke: #e6edf3 }
    .axis { stroke: #3d444d }
    .page { fill: #0d1117 }
  }
";

/// The picture of all that was measured.
pub fn picture(plan: &Plan, samples: &Samples) -> String {
    let panels: Vec<Panel> = plan
        .measures
        .iter()
        .flat_map(|&measure| {
            let rate = panel(plan, measure.heading(), |index| {
                let spread = Spread::of(samples.of(index, measure).map(|sample| sample.rate))?;
                Some((spread, measure.format(spread.median)))
            });
            let halves = panel(plan, &format!("{}: p50, us", name_of(measure)), |index| {
                let latencies = samples.of(index, measure).filter_map(|sample| sample.latency);
                let spread = Spread::of(latencies.map(|latency| micros(latency.p50)))?;
                Some((spread, format!("{:.0}", spread.median)))
            });
            [rate, halves]
        })
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    draw(&panels)
}

fn name_of(measure: Measure) -> &'static str {
    match measure {
        Measure::Loaded => "request latency under load",
        Measure::First => "first packet of a process",
        _ => measure.heading(),
    }
}

fn panel(plan: &Plan, title: &str, bar: impl Fn(usize) -> Option<(Spread, String)>) -> Panel {
    let bars = plan.contenders.iter().enumerate().filter_map(|(index, contender)| {
        let (spread, number) = bar(index)?;
        Some((contender.name().to_owned(), spread, number))
    });
    Panel { title: title.to_owned(), bars: bars.collect() }
}

fn draw(panels: &[Panel]) -> String {
    let height: f64 = GAP + panels.iter().map(|panel| TITLE + ROW * panel.bars.len() as f64 + GAP).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Medians of all contenders by each measure, with their spread\">\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    let mut top = GAP;
    for panel in panels {
        draw_panel(&mut svg, panel, top);
        top += TITLE + ROW * panel.bars.len() as f64 + GAP;
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, panel: &Panel, top: f64) {
    let most = panel.bars.iter().map(|(_, spread, _)| spread.most).fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| LABELS + value / most * (WIDTH - LABELS - NUMBERS);
    let (first, last) = (top + TITLE - 6.0, top + TITLE + ROW * panel.bars.len() as f64);
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "<text class=\"title\" x=\"8\" y=\"{}\">{}</text>", top + 16.0, escaped(&panel.title));
    let _ = writeln!(svg, "<line class=\"axis\" x1=\"{LABELS}\" x2=\"{LABELS}\" y1=\"{first}\" y2=\"{last}\"/>");
    for (row, (name, spread, number)) in panel.bars.iter().enumerate() {
        let y = top + TITLE + ROW * row as f64;
        let middle = y + ROW / 2.0 - 2.0;
        let class = if name.starts_with("app-fw") { "bar ours" } else { "bar" };
        let (least, median, greatest) = (at(spread.least), at(spread.median), at(spread.most));
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect class=\"{class}\" x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\"/>\n\
             <line class=\"spread\" x1=\"{least:.1}\" x2=\"{greatest:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\n\
             <text class=\"number\" x=\"{:.1}\" y=\"{}\">{}</text>",
            LABELS - 8.0,
            y + 12.0,
            escaped(name),
            median - LABELS,
            ROW - 4.0,
            greatest + 6.0,
            y + 12.0,
            escaped(number),
        );
        for end in [least, greatest] {
            let (from, to) = (middle - 3.0, middle + 3.0);
            let _ = writeln!(svg, "<line class=\"spread\" x1=\"{end:.1}\" x2=\"{end:.1}\" y1=\"{from}\" y2=\"{to}\"/>");
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::two_rounds;

    #[test]
    fn each_contender_has_a_bar() {
        let (plan, samples) = two_rounds();
        let svg = picture(&plan, &samples);
        assert_eq!(svg.matches("<rect class=\"bar").count(), 2, "no panel where nothing was timed");
        assert!(svg.contains("UDP 64 B, packets/s"));
        // The greatest of all, 200, is as wide as there is room; the medians are 150 and 110.
        assert!(svg.contains("width=\"390.0\"") && svg.contains("width=\"286.0\""), "{svg}");
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn names_are_text() {
        let spread = Spread { median: 1.0, least: 1.0, most: 1.0 };
        let panel = Panel { title: "a < b".into(), bars: vec![("<x>&".into(), spread, "1".into())] };
        let svg = draw(&[panel]);
        assert!(svg.contains("a &lt; b") && svg.contains("&lt;x&gt;&amp;"));
    }
}

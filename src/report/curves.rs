//! Learning curves: one small chart per measure, a line per stage, drawn as SVG. Colours come from `style.css`, so that they
//! follow the reader's theme; seeds differ by line pattern, and the best epoch of each stage is a ring.

use std::collections::BTreeSet;

use crate::train::record::EpochRecord;

use super::html::{decimal, escape};
use super::view::{RunView, StageView};

/// The chart's own units; it scales with the page.
const WIDTH: f64 = 540.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 42.0;

/// More lines than these are too many to follow each.
const MANY: usize = 8;

/// A measure that an epoch may have.
struct Measure {
    title: &'static str,
    of: fn(&EpochRecord) -> Option<f64>,
}

const MEASURES: [Measure; 5] = [
    Measure { title: "Validation loss", of: |epoch| Some(epoch.valid_loss) },
    Measure { title: "Validation CER, %", of: |epoch| epoch.valid_cer },
    Measure { title: "Validation perplexity", of: |epoch| epoch.valid_perplexity },
    Measure { title: "Validation WER, %", of: |epoch| epoch.valid_wer },
    Measure { title: "Training loss", of: |epoch| Some(epoch.train_loss) },
];

/// `None` for a run without epochs.
pub fn section(run: &RunView) -> Option<String> {
    let stages: Vec<&StageView> = run.stages.iter().filter(|stage| !stage.epochs.is_empty()).collect();
    if stages.is_empty() {
        return None;
    }
    let legend = legend(&stages);
    let charts: String = MEASURES.iter().filter_map(|measure| chart(&stages, measure)).collect();
    let ring = match run.averaged_epochs() {
        None => "epoch whose weights were kept",
        Some(_) => "epoch with the lowest validation loss",
    };
    Some(format!(
        "<p class=\"legend\">{legend}<span><i class=\"ring\"></i>{ring}</span></p>\n<div class=\"charts\">\n{charts}</div>\n"
    ))
}

/// An entry for each stage; where seeds multiply them, one for each colour and one for each line pattern. The stages of a wide search
/// for which no colour is left share one, and an entry.
fn legend(stages: &[&StageView]) -> String {
    let mut entries: Vec<String> = Vec::new();
    let mut add = |sample: String, text: &str| {
        let entry = format!("<span>{sample}{text}</span>");
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    };
    let kind = |stage: &StageView| stage.title.split(", ").next().unwrap_or_default().to_string();
    for stage in stages {
        let same_colour = stages.iter().filter(|other| other.colour == stage.colour);
        let kinds: BTreeSet<String> = same_colour.map(|other| kind(other)).collect();
        let text = if kinds.len() > 1 { format!("{} others", kinds.len()) } else { kind(stage) };
        add(sample(&stage.colour, ""), &text);
    }
    for stage in stages {
        if let Some((_, variant)) = stage.title.split_once(", ") {
            add(sample("c0", stage.dash), variant);
        }
    }
    entries.concat()
}

/// A stage's line, for a legend.
pub fn line_sample(stage: &StageView) -> String {
    sample(&stage.colour, stage.dash)
}

fn sample(colour: &str, dash: &str) -> String {
    format!(
        "<svg class=\"sample\" viewBox=\"0 0 30 10\" aria-hidden=\"true\"><path class=\"line {colour}\" stroke-dasharray=\"{dash}\" d=\"M1 5H29\"/></svg>"
    )
}

fn chart(stages: &[&StageView], measure: &Measure) -> Option<String> {
    let values = || stages.iter().flat_map(|stage| stage.epochs.iter().filter_map(|epoch| (measure.of)(epoch)));
    values().next()?;
    let title = measure.title;
    let Some(scale) = Scale::over(values().filter(|value| value.is_finite())) else {
        return Some(format!(
            "<figure><figcaption>{title}</figcaption><p class=\"empty\">No value is finite.</p></figure>\n"
        ));
    };
    let last_epoch =
        stages.iter().flat_map(|stage| stage.epochs.iter().map(|epoch| epoch.epoch)).max().unwrap_or(1).max(2);
    let x = |epoch: usize| LEFT + (WIDTH - LEFT - RIGHT) * (epoch.max(1) - 1) as f64 / (last_epoch - 1) as f64;
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - scale.position(value));

    let mut svg = axes(&scale, last_epoch, &x, &y);
    // The best and the baseline are drawn last, over the others, and of many stages they alone are bold.
    let stands_out = |stage: &&&StageView| stage.is_best || stage.is_baseline();
    let weight = if stages.len() > MANY { " minor" } else { "" };
    for stage in stages.iter().filter(|stage| !stands_out(stage)) {
        svg.push_str(&line(stage, measure, weight, &x, &y));
    }
    for stage in stages.iter().filter(stands_out) {
        svg.push_str(&line(stage, measure, "", &x, &y));
    }
    let logarithmic = if scale.logarithmic { " <small>logarithmic axis</small>" } else { "" };
    Some(format!(
        "<figure><figcaption>{title}{logarithmic}</figcaption><svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{title} by epoch\">\n{svg}</svg></figure>\n"
    ))
}

fn axes(scale: &Scale, last_epoch: usize, x: &dyn Fn(usize) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let mut svg = String::new();
    for tick in &scale.ticks {
        let at = y(*tick);
        svg.push_str(&format!(
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 7.0,
            at + 4.5,
            scale.label(*tick),
        ));
    }
    for epoch in epoch_ticks(last_epoch) {
        svg.push_str(&format!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{epoch}</text>\n",
            x(epoch),
            HEIGHT - BOTTOM + 18.0
        ));
    }
    let floor = HEIGHT - BOTTOM;
    svg.push_str(&format!("<path class=\"axis\" d=\"M{LEFT} {floor}H{:.1}\"/>", WIDTH - RIGHT));
    svg.push_str(&format!(
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">epoch</text>\n",
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        HEIGHT - 6.0
    ));
    svg
}

/// A stage's line. Where a value is not finite the line is broken and a cross stands at the top.
fn line(
    stage: &StageView,
    measure: &Measure,
    weight: &str,
    x: &dyn Fn(usize) -> f64,
    y: &dyn Fn(f64) -> f64,
) -> String {
    let (mut path, mut marks, mut pen_down) = (String::new(), String::new(), false);
    let best = stage
        .result
        .map(|result| result.best_epoch)
        .or_else(|| stage.epochs.iter().filter(|epoch| epoch.best).map(|epoch| epoch.epoch).next_back());
    let points: Vec<(usize, f64)> =
        stage.epochs.iter().filter_map(|epoch| (measure.of)(epoch).map(|value| (epoch.epoch, value))).collect();
    for (epoch, value) in &points {
        let at = x(*epoch);
        if !value.is_finite() {
            marks.push_str(&format!(
                "<text class=\"lost {}\" x=\"{at:.1}\" y=\"{:.1}\">×<title>{}, epoch {epoch}: not finite</title></text>",
                stage.colour,
                TOP + 4.0,
                stage.title
            ));
            pen_down = false;
            continue;
        }
        path.push_str(&format!("{}{at:.1} {:.1}", if pen_down { 'L' } else { 'M' }, y(*value)));
        pen_down = true;
        let alone = points.len() == 1;
        if Some(*epoch) == best || alone {
            marks.push_str(&format!(
                "<circle class=\"ring {}\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"4.5\"><title>{}, epoch {epoch}: {}</title></circle>",
                stage.colour,
                y(*value),
                stage.title,
                decimal(*value, 3)
            ));
        }
    }
    format!(
        "<path class=\"line {}{weight}\" stroke-dasharray=\"{}\" d=\"{path}\"><title>{}</title></path>{marks}\n",
        stage.colour, stage.dash, stage.title
    )
}

/// At most nine round epochs, the first among them.
fn epoch_ticks(last: usize) -> Vec<usize> {
    let mut step = 1usize;
    while last / step > 8 {
        // 1, 2, 5, 10, 20, ...
        let leading = step / 10usize.pow(step.ilog10());
        step = if leading == 2 { (step / 2).saturating_mul(5) } else { step.saturating_mul(2) };
    }
    let mut ticks: Vec<usize> = (1..=last / step).map(|index| index * step).collect();
    if ticks.first() != Some(&1) && (step <= last) {
        ticks.insert(0, 1);
        // The label of the first epoch and of an early tick would touch.
        if ticks.get(1).is_some_and(|second| (second - 1).saturating_mul(14) < last) {
            ticks.remove(1);
        }
    }
    ticks
}

/// A vertical axis over finite values.
struct Scale {
    low: f64,
    high: f64,
    /// So that the end of the curves, where stages differ little, is not flattened by the first epochs, where all are bad.
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Scale {
    /// `None` if there is no value.
    fn over(values: impl Iterator<Item = f64>) -> Option<Scale> {
        let (low, high) = values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        })?;
        let logarithmic = low > 0.0 && high / low >= 4.0;
        Some(if logarithmic { Self::logarithmic(low, high) } else { Self::linear(low, high) })
    }

    fn linear(low: f64, high: f64) -> Scale {
        // A flat line gets some room; the subtraction may overflow for the largest numbers there are.
        let room = if high > low { high / 2.0 - low / 2.0 } else { (high.abs() / 2.0).max(0.5) };
        let raw = room / 2.0;
        let magnitude = 10f64.powf(raw.log10().floor()).max(f64::MIN_POSITIVE);
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * magnitude)
            .find(|step| *step >= raw * 0.999)
            .unwrap_or(raw);
        let below = if low >= 0.0 && low <= room { 0.0 } else { ((low / step).floor() * step).max(f64::MIN / 4.0) };
        // Up to the next tick, or a little above the highest value where that tick is far.
        let above = ((high / step).ceil() * step).min(high + 0.12 * room);
        let above = above.min(f64::MAX / 4.0).max(below + step);
        let number = (((above - below) / step + 1e-6) as usize).min(20);
        let ticks = (0..=number).map(|index| below + index as f64 * step).collect();
        Scale { low: below, high: above, logarithmic: false, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Scale {
        let decades = (high / low).log10();
        let factors: &[f64] = match decades {
            d if d <= 1.2 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
            d if d <= 2.5 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let (first, last) = (low.log10().floor() as i32 - 1, high.log10().ceil() as i32);
        // Beyond six decades only every second or third one is labelled.
        let stride = ((decades / 6.0).ceil() as usize).max(1);
        let candidates = (first..=last)
            .step_by(stride)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        // The axis ends where the curves end, with a little room.
        let (low, high) = (low / 1.06, high * 1.06);
        let ticks = candidates.filter(|tick| (low..=high).contains(tick)).collect();
        Scale { low, high, logarithmic: true, ticks }
    }

    /// 0 at the bottom, 1 at the top.
    fn position(&self, value: f64) -> f64 {
        let position = match self.logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        position.clamp(0.0, 1.0)
    }

    fn label(&self, tick: f64) -> String {
        let step =
            self.ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min).min(tick.abs().max(1e-9));
        if tick.abs() >= 1e6 || (tick != 0.0 && tick.abs() < 1e-4) {
            return escape(&format!("{tick:.0e}"));
        }
        let digits = (0..6).find(|digits| {
            let scaled = step * 10f64.powi(*digits);
            tick == 0.0 || (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
        });
        decimal(tick, digits.unwrap_or(6) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_round_ticks_and_holds_every_value() {
        for (values, logarithmic) in [
            (vec![15.1, 17.2, 21.0], false),
            (vec![0.0, 3.0, 100.0], false),
            (vec![15.0, 400.0], true),
            (vec![7.0], false),
            (vec![0.0], false),
            (vec![-3.0, 5.0], false),
            (vec![1e-30, 1e30], true),
            (vec![f64::MIN, f64::MAX], false),
            (vec![1e-320], false),
        ] {
            let scale = Scale::over(values.iter().copied()).expect("values");
            assert_eq!(scale.logarithmic, logarithmic, "{values:?}");
            assert!((1..=21).contains(&scale.ticks.len()), "{values:?}: {:?}", scale.ticks);
            for value in values {
                let position = scale.position(value);
                assert!((0.0..=1.0).contains(&position), "{value} at {position}");
            }
        }
        let labels = |values: &[f64]| {
            let scale = Scale::over(values.iter().copied()).expect("values");
            scale.ticks.iter().map(|tick| scale.label(*tick)).collect::<Vec<_>>()
        };
        assert_eq!(labels(&[0.0, 98.0]), ["0", "25", "50", "75", "100"]);
        assert_eq!(labels(&[15.1, 17.2]), ["15", "16", "17"]);
        assert_eq!(labels(&[0.0, 105.0]), ["0", "50", "100"]);
        assert_eq!(labels(&[10.0, 95.0]), ["10", "15", "20", "30", "40", "50", "70", "100"]);
        assert!(Scale::over(std::iter::empty()).is_none());
    }

    #[test]
    fn epochs_are_labelled_at_round_numbers() {
        assert_eq!(epoch_ticks(5), [1, 2, 3, 4, 5]);
        assert_eq!(epoch_ticks(26), [1, 5, 10, 15, 20, 25]);
        assert_eq!(epoch_ticks(750), [1, 100, 200, 300, 400, 500, 600, 700]);
        assert!(epoch_ticks(usize::MAX).len() <= 9, "a log that is nonsense must not fill the memory");
    }
}

//! Learning rate schedules, as `transformers.get_scheduler` has them.

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Straight down to 0 at the last step.
    Linear,
    /// Half a cosine down to `min_lr_rate` times the peak at the last step.
    Cosine {
        /// What is left at the end, as a share of the peak.
        min_lr_rate: f64,
    },
}

/// How the learning rate rises from 0 to its peak, linearly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// Over this many steps.
    Steps(usize),
    /// Over this share of all steps, rounded up.
    Ratio(f64),
}

impl Schedule {
    /// The name and number under which a configuration has it: `lr_scheduler_type`, `min_lr_rate`.
    pub fn key(self) -> (&'static str, f64) {
        match self {
            Schedule::Constant => ("constant", 1.0),
            Schedule::Linear => ("linear", 0.0),
            Schedule::Cosine { min_lr_rate } => ("cosine", min_lr_rate),
        }
    }

    /// The factor on the peak learning rate at optimizer step `step` (from 0) of `total`.
    pub fn factor(self, warmup: Warmup, step: usize, total: usize) -> f64 {
        let warmup = match warmup {
            Warmup::Steps(n) => n,
            Warmup::Ratio(r) => (r * total as f64).ceil() as usize,
        };
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let falling = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => total.saturating_sub(step) as f64 / falling,
            Schedule::Cosine { min_lr_rate } => {
                let progress = (step - warmup) as f64 / falling;
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
                cosine * (1.0 - min_lr_rate) + min_lr_rate
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_the_values_of_transformers() {
        let linear: Vec<f64> = (0..5).map(|s| Schedule::Linear.factor(Warmup::Steps(2), s, 5)).collect();
        assert_eq!(linear, [0.0, 0.5, 1.0, 2.0 / 3.0, 1.0 / 3.0]);
        let cosine = Schedule::Cosine { min_lr_rate: 0.1 };
        assert_eq!(cosine.factor(Warmup::Ratio(0.1), 0, 20), 0.0);
        assert_eq!(cosine.factor(Warmup::Ratio(0.1), 2, 20), 1.0);
        assert!((cosine.factor(Warmup::Steps(0), 10, 20) - 0.55).abs() < 1e-12);
        assert!((cosine.factor(Warmup::Steps(0), 20, 20) - 0.1).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(Warmup::Steps(4), 1, 9), 0.25);
        assert_eq!(Schedule::Constant.factor(Warmup::Steps(4), 8, 9), 1.0);
        // A ratio is rounded up: 0.1 of 11 steps is 2 steps of warm-up.
        assert_eq!(Schedule::Linear.factor(Warmup::Ratio(0.1), 1, 11), 0.5);
    }
}

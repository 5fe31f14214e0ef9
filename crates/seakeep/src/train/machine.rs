//! What the machine can do: its best matrix product, and its memory.

use std::sync::OnceLock;
use std::time::Duration;

use seakeep_kernels::ceiling;
use seakeep_kernels::gemm::Precision;

/// How long is measured.
const LONG: Duration = Duration::from_millis(150);

/// Floating-point operations a second of the best of several matrix products in this precision, on all threads: measured when it is
/// asked for first.
pub fn measured_ceiling(precision: Precision) -> f64 {
    static F32: OnceLock<f64> = OnceLock::new();
    static BF16: OnceLock<f64> = OnceLock::new();
    let measured = match precision {
        Precision::F32 => &F32,
        Precision::Bf16 => &BF16,
    };
    *measured.get_or_init(|| ceiling::product(precision, LONG))
}

/// How fast steps are.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Operations a second of the machine's best product.
    ceiling: f64,
    operations: f64,
    tokens: usize,
    seconds: f64,
}

impl Speed {
    /// Of no step yet.
    pub fn new(ceiling: f64) -> Speed {
        Speed { ceiling, operations: 0.0, tokens: 0, seconds: 0.0 }
    }

    /// Counts a step: the floating-point operations that it needs, its tokens as `num_tokens` counts them, its time.
    pub fn add(&mut self, operations: f64, tokens: usize, time: Duration) {
        self.operations += operations;
        self.tokens += tokens;
        self.seconds += time.as_secs_f64();
    }

    /// Tokens a second; 0 before the first step.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Model FLOPs utilization: the operations that the steps need, a second, as a share of the machine's best product.
    pub fn mfu(&self) -> f64 {
        if self.seconds > 0.0 { self.operations / self.seconds / self.ceiling } else { 0.0 }
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:.0} tokens/s, mfu {:.0}%", self.tokens_per_second(), 100.0 * self.mfu())
    }
}

/// Bytes of memory of this machine, or of what it is let have; `None` where the system does not say.
pub fn memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        kilobytes.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    // Of a container.
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limit.iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    match (total.map(|kilobytes| kilobytes * 1024), limit) {
        (Some(total), Some(limit)) => Some(total.min(limit)),
        (total, limit) => total.or(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_measured() {
        // A processor of the last twenty years, not optimised, to a hundred of the best.
        assert!((1e8..1e14).contains(&measured_ceiling(Precision::F32)));
        if cfg!(target_os = "linux") {
            assert!(memory().is_some_and(|bytes| bytes > 1 << 28));
        }
    }
}

//! Judging a policy: see `PolicyRecord`.

//! Foreign files against foreign code: libraries that panic at a damaged file, and programs (templates) that do not end.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use crate::{Error, Result};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static WORKER: RefCell<Option<Sender<Work>>> = const { RefCell::new(None) };
}

type Work = Box<dyn FnOnce() + Send>;

/// Stack of the threads that [`within`] works on: values that a template nests are taken apart by recursion. Pages that are not touched take
/// no memory.
const STACK: usize = 256 << 20;

/// Whether this thread is in work whose panics become errors: a panic hook need not tell of them.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Does `work` on the file `path` by a library that is known to panic where files are damaged: a panic becomes an error about the file.
///
/// # Errors
/// Those of `work`; [`Error::Format`] for a panic.
pub fn guarded<T>(path: &Path, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    done.unwrap_or_else(|panic| Err(Error::format(path, format!("{what} ({})", message(&*panic)))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// Does `work` on a thread beside this one, with much room for recursion, and waits so long for it; `None` where it has not ended by then, or
/// panicked. Nothing can stop such work: its thread is left to itself.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let work: Work = Box::new(move || drop(done.send(work())));
    WORKER.with_borrow_mut(|worker| {
        let Err(unsent) = worker.get_or_insert_with(start).send(work) else { return };
        // The last one panicked.
        let anew = start();
        let _ = anew.send(unsent.0);
        *worker = Some(anew);
    });
    let result = result.recv_timeout(limit).ok();
    if result.is_none() {
        WORKER.set(None);
    }
    result
}

/// A thread that does what it is sent, until nobody can send it any more.
fn start() -> Sender<Work> {
    let (to, from) = channel::<Work>();
    let serve = move || {
        GUARDED.set(true);
        from.into_iter().for_each(|work| work());
    };
    std::thread::Builder::new().stack_size(STACK).spawn(serve).expect("a thread");
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_errors_and_endless_work_is_left() {
        let path = Path::new("a.bin");
        let error = guarded::<()>(path, "damaged", || panic!("index {}", 7)).unwrap_err().to_string();
        assert!(error.contains("a.bin") && error.contains("damaged (index 7)"), "{error}");
        assert!(!is_guarded() && guarded(path, "damaged", || Ok(is_guarded())).unwrap());

        let long = Duration::from_secs(60);
        assert_eq!(within(long, || 7), Some(7));
        assert_eq!(within::<()>(long, || panic!("no")), None);
        assert_eq!(within(long, || 8), Some(8));
        assert_eq!(within(Duration::from_millis(20), || std::thread::sleep(Duration::from_secs(2))), None);
        assert_eq!(within(long, || 9), Some(9));
        fn deep(n: usize) -> usize {
            if n == 0 { 0 } else { 1 + std::hint::black_box(deep(n - 1)) }
        }
        assert_eq!(within(long, || deep(500_000)), Some(500_000));
    }
}

//! Panics of the fold: caught, with the text and the source location, and without a message and a backtrace in the logs each
//! time, because the record that causes it is found by folding parts of the batch again and again.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is caught here.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// Source location of the last such panic.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls `act` on this thread.
///
/// # Errors
/// `act` panicked: the text and the source location of the panic.
pub(crate) fn catching<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let otherwise = take_hook();
        set_hook(Box::new(move |panic| {
            if CATCHING.get() {
                LOCATION.set(panic.location().map(ToString::to_string));
            } else {
                otherwise(panic);
            }
        }));
    });
    CATCHING.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(act));
    CATCHING.set(false);
    outcome.map_err(|panic| match LOCATION.take() {
        Some(location) => format!("{} (at {location})", panic_text(&*panic)),
        None => panic_text(&*panic),
    })
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "without words".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    // One test: the hook is the whole process's.
    #[test]
    fn a_panic_that_is_caught_is_not_printed_and_others_are() {
        static PRINTED: AtomicUsize = AtomicUsize::new(0);
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            PRINTED.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }));
        for _ in 0..3 {
            let text = catching(|| panic!("of a test")).expect_err("it panics");
            assert!(text.starts_with("of a test (at "), "{text}");
        }
        let printed = PRINTED.load(Ordering::Relaxed);
        assert!(catch_unwind(|| panic!("of a test, and printed")).is_err());
        assert_eq!((printed, PRINTED.load(Ordering::Relaxed)), (0, 1));
        assert_eq!(catching(|| 7), Ok(7));
        let text = catching(|| Vec::<u8>::new()[std::hint::black_box(1)]).expect_err("it panics");
        assert!(text.contains("out of bounds") && text.contains("fold_panic.rs:"), "{text}");
        let text = catching(|| std::panic::panic_any(5)).expect_err("it panics");
        assert!(text.contains("without words"), "{text}");
    }
}

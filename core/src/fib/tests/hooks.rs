//! What the table does to its cells, as tests see it: how many a change writes, and that another thread may come
//! between any two.

extern crate std;

use core::cell::Cell;

std::thread_local! {
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
    /// Every how many cells another thread may run; 0 for never.
    static EVERY: Cell<usize> = const { Cell::new(0) };
    static TOUCHED: Cell<usize> = const { Cell::new(0) };
    static CARELESS: Cell<bool> = const { Cell::new(false) };
}

/// Called before each read of a cell.
pub(in crate::fib) fn reads() {
    touches();
}

/// Called before `cells` cells are written.
pub(in crate::fib) fn writes(cells: usize) {
    WRITTEN.set(WRITTEN.get() + cells);
    touches();
}

/// Whether memory is taken back without asking for its readers: the fault that the tests of publication must find.
pub(in crate::fib) fn careless() -> bool {
    CARELESS.get()
}

/// The cells that `change` writes.
pub(super) fn cells_written(change: impl FnOnce()) -> usize {
    let before = WRITTEN.get();
    change();
    WRITTEN.get() - before
}

/// Lets shuttle run another thread at every `every`th cell that one reads or writes, until it is dropped.
pub(super) struct Interleaved;

impl Interleaved {
    pub(super) fn new(every: usize, careless: bool) -> Self {
        EVERY.set(every);
        CARELESS.set(careless);
        Self
    }
}

impl Drop for Interleaved {
    fn drop(&mut self) {
        EVERY.set(0);
        CARELESS.set(false);
    }
}

fn touches() {
    let every = EVERY.get();
    if every == 0 {
        return;
    }
    TOUCHED.set(TOUCHED.get() + 1);
    if TOUCHED.get().is_multiple_of(every) {
        shuttle::thread::yield_now();
    }
}

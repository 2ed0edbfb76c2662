use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Threads that work on one job at a time: `threads - 1` workers and whoever calls [`run`](Self::run).
///
/// A job is handed over by raising `round`; workers see it while they spin, or are woken. Each
/// thread then claims tasks from a counter until none is left, so a thread that the system holds
/// up takes fewer.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: callers on several threads take turns.
    turn: Mutex<()>,
}

impl Pool {
    /// Starts `threads - 1` workers. `pin` is called on each of them with the worker's number first.
    ///
    /// In a `crowded` pool, of more threads than cores, spinning would keep the core from whoever is awaited: they sleep
    /// at once.
    pub(crate) fn new(
        threads: usize,
        crowded: bool,
        pin: impl Fn(usize) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let mut pool = Self::of(if crowded { Duration::ZERO } else { SPIN });
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let pin = pin.clone();
            let builder = thread::Builder::new().name(format!("shoal-cpu-{thread}"));
            // On an error the drop of `pool` stops the workers there are.
            pool.workers.push(builder.spawn(move || {
                // A worker that ended here would be waited for by the first job, for ever.
                let _unpinned = catch_unwind(AssertUnwindSafe(|| pin(thread)));
                shared.work(thread);
            })?);
        }
        Ok(pool)
    }

    /// Returns a pool of the calling thread alone.
    pub(crate) fn caller() -> Self {
        Self::of(Duration::ZERO)
    }

    fn of(spin: Duration) -> Self {
        let shared = Shared {
            job: UnsafeCell::new(None),
            round: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            gate: Mutex::new(None),
            wake: Condvar::new(),
            done: Condvar::new(),
            spin,
        };
        Self {
            shared: Arc::new(shared),
            workers: Vec::new(),
            turn: Mutex::new(()),
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(thread, task)` once for each task, on all threads, and returns when all are done.
    ///
    /// # Panics
    /// If `work` panicked on any thread, with its payload.
    pub(crate) fn run(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|task| work(0, task));
            return;
        }
        let next = AtomicUsize::new(0);
        let job = |thread: usize| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(thread, task);
            }
        };
        let _turn = lock(&self.turn);
        let panic = self.shared.run(self.workers.len(), &job);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `work(thread, i, chunk)` for each chunk of `chunk_len` elements of `data` (the last may be shorter).
    pub(crate) fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        work: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let len = data.len();
        let data = SharedSlice::new(data);
        self.run(len.div_ceil(chunk_len), |thread, i| {
            let range = i * chunk_len..len.min((i + 1) * chunk_len);
            // SAFETY: the pool runs each task once, and chunks of different tasks do not overlap.
            work(thread, i, unsafe { data.slice(range) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.raise();
        for worker in self.workers.drain(..) {
            // Workers catch panics of jobs, so join cannot fail, and a drop has nobody to tell.
            let _ = worker.join();
        }
    }
}

/// A slice whose parts are written by several threads.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` of disjoint parts (contract of `slice`), which is sending `T`s.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            lifetime: PhantomData,
        }
    }

    /// Returns a part.
    ///
    /// # Safety
    /// - No two parts that live at the same time overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the contract")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds of the slice this was made from, which stays borrowed for 'a, and
        // nobody else holds this part by the contract above.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// How long a thread looks for work before it sleeps: longer than the pause between two kernels
/// of one step, shorter than a step, so an idle cell takes no processor time.
const SPIN: Duration = Duration::from_micros(40);

type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Written only by `run` while no worker is working; read by workers after they see a new round.
    job: UnsafeCell<Option<Job<'static>>>,
    round: AtomicUsize,
    working: AtomicUsize,
    /// Threads waiting on a condition, or about to.
    sleeping: AtomicUsize,
    stop: AtomicBool,
    /// The first panic of the current job; also the lock of the conditions.
    gate: Mutex<Option<Box<dyn Any + Send>>>,
    wake: Condvar,
    done: Condvar,
    spin: Duration,
}

// SAFETY: `job` is the only part that is not `Sync`; who may touch it when is stated there.
unsafe impl Sync for Shared {}
// SAFETY: the job is a shared reference to a `Sync` closure.
unsafe impl Send for Shared {}

impl Shared {
    fn run(&self, workers: usize, job: Job<'_>) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes. Workers use the job only between the new round and
        // their decrement of `working`, and this function returns after `working` reached 0, on
        // every path: the caller's own part runs under catch_unwind.
        let erased = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: `working` is 0: no worker reads the job now, and `Pool::turn` keeps other callers out.
        unsafe { *self.job.get() = Some(erased) };
        self.working.store(workers, Ordering::SeqCst);
        self.raise();
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.wait(&self.done, || self.working.load(Ordering::SeqCst) == 0);
        let theirs = lock(&self.gate).take();
        own.err().or(theirs)
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            self.wait(&self.wake, || self.round.load(Ordering::SeqCst) != seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // The next round is not raised before this worker is done, so it sees every one.
            seen += 1;
            // SAFETY: the job was written before the round was raised and stays until this worker is done.
            let job = unsafe { *self.job.get() }.expect("a round has a job");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(thread))) {
                lock(&self.gate).get_or_insert(panic);
            }
            if self.working.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.notify(&self.done);
            }
        }
    }

    /// Starts a round.
    fn raise(&self) {
        self.round.fetch_add(1, Ordering::SeqCst);
        self.notify(&self.wake);
    }

    /// Spins until `ready`, then sleeps until notified.
    fn wait(&self, condition: &Condvar, ready: impl Fn() -> bool) {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= self.spin {
                break;
            }
        }
        let mut gate = lock(&self.gate);
        // Announced before the last look at the condition, and looked for by `notify` after the
        // condition was made true: in one of the two orders, one of them sees the other.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            gate = condition.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn notify(&self, condition: &Condvar) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.gate));
            condition.notify_all();
        }
    }
}

/// Locks; a panic elsewhere while it was held leaves nothing half done in this crate.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        let crowded = threads > crate::machine::available_cores();
        Pool::new(threads, crowded, |_| ()).unwrap()
    }

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for threads in [1, 2, 3, 4 * crate::machine::available_cores()] {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |thread, task| {
                    assert!(thread < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1)
                );
            }
        }
    }

    #[test]
    fn many_short_jobs_in_a_row() {
        const JOBS: usize = if cfg!(miri) { 30 } else { 3000 };
        for threads in [2, 5] {
            let pool = pool(threads);
            let total = AtomicUsize::new(0);
            for _ in 0..JOBS {
                pool.run(3, |_, task| {
                    total.fetch_add(task, Ordering::Relaxed);
                });
            }
            assert_eq!(total.into_inner(), 3 * JOBS);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let pool = pool(3);
        // Tasks wait for each other, so that all three threads take one, workers included.
        let barrier = std::sync::Barrier::new(3);
        for culprit in [0, 1, 2] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(3, |thread, _| {
                    barrier.wait();
                    assert_ne!(thread, culprit, "culprit");
                });
            }));
            assert!(caught.is_err());
            let count = AtomicUsize::new(0);
            pool.run(10, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[test]
    fn callers_on_several_threads_and_several_pools_do_not_mix() {
        let pools = [pool(2), pool(3)];
        thread::scope(|scope| {
            for i in 0..4 {
                let pool = &pools[i % 2];
                scope.spawn(move || {
                    for _ in 0..if cfg!(miri) { 5 } else { 200 } {
                        let mut data = vec![0; 1000];
                        pool.for_each_chunk(&mut data, 7, |_, chunk, part| {
                            part.fill(i * 1000 + chunk);
                        });
                        assert!(
                            data.iter()
                                .enumerate()
                                .all(|(at, &x)| x == i * 1000 + at / 7)
                        );
                    }
                });
            }
        });
    }
}

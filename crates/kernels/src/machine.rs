/// Returns the most memory this process has had resident, in bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    imp::peak_memory_bytes()
}

/// Returns how many cores this process may use.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Asks the system to back memory that was not touched yet with huge pages. A hint: nothing but speed depends on it.
pub(crate) fn advise_huge_pages(start: *const u8, bytes: usize) {
    imp::advise_huge_pages(start, bytes);
}

/// Says whether this is a processor of Intel's.
pub(crate) fn is_intel() -> bool {
    // Miri does not know the instruction.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        static IS_INTEL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *IS_INTEL.get_or_init(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx]
                .map(u32::to_le_bytes)
                .as_flattened()
                == b"GenuineIntel"
        })
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

#[cfg(target_os = "linux")]
mod imp {
    pub(super) fn advise_huge_pages(start: *const u8, bytes: usize) {
        // Miri does not know the call.
        if cfg!(miri) {
            return;
        }
        // Not rustix's, which looks for the vDSO and is ended by that under valgrind.
        // SAFETY: it only reads a number, which is positive on every Linux.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let Some(whole) = bytes.checked_sub(start.align_offset(page_bytes)) else {
            return;
        };
        let start = start.wrapping_add(bytes - whole);
        // SAFETY: the advice changes no contents, whatever the memory is, and the system refuses what is not mapped.
        unsafe { libc::madvise(start.cast_mut().cast(), whole, libc::MADV_HUGEPAGE) };
    }

    pub(super) fn peak_memory_bytes() -> u64 {
        // getrusage would also count what the parent had resident before exec; VmHWM starts anew.
        let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
            return 0;
        };
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::mem::MaybeUninit;

    pub(super) fn advise_huge_pages(_start: *const u8, _bytes: usize) {}

    pub(super) fn peak_memory_bytes() -> u64 {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is a writable rusage, and all zeroes is a valid value of it.
        let usage = unsafe {
            libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
            usage.assume_init()
        };
        // macOS counts ru_maxrss in bytes, the BSDs in KiB.
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        u64::try_from(usage.ru_maxrss).unwrap_or(0) * unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_covers_touched_memory() {
        let bytes = vec![1_u8; 64 << 20];
        assert!(bytes.iter().map(|&b| u64::from(b)).sum::<u64>() == 64 << 20);
        assert!(peak_memory_bytes() >= 64 << 20);
        assert!(available_cores() >= 1);
    }
}

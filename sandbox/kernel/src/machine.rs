//! What a machine is to the memory of a process: where these differ, a snapshot must not be restored.

use nix::{Result, sys::utsname::uname};
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Release and version of the kernel: the vDSO, and where its parts are, is of exactly one build.
///
/// # Errors
/// The kernel's.
pub fn kernel_release() -> Result<String> {
    let name = uname()?;
    Ok(format!("{} {}", name.release().to_string_lossy(), name.version().to_string_lossy()))
}

/// What the C library, ggml and the layout of the extended state were chosen by: vendor, model, features, and the size of
/// the XSAVE area for what the kernel has enabled. Without what differs from core to core, such as its own number.
pub fn cpu_features() -> Vec<u64> {
    const EXTENDED: u32 = 0x8000_0000;
    let (most, most_extended) = (__cpuid(0), __cpuid(EXTENDED).eax);
    let identity = __cpuid(1);
    let mut words = vec![most.eax, most.ebx, most.ecx, most.edx, identity.eax, identity.ecx, identity.edx];
    if most.eax >= 7 {
        let (first, second) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        words.extend([first.ebx, first.ecx, first.edx, second.eax, second.edx]);
    }
    if most.eax >= 0xd {
        let (state, more) = (__cpuid_count(0xd, 0), __cpuid_count(0xd, 1));
        words.extend([state.eax, state.ebx, state.edx, more.eax]);
    }
    if most_extended > EXTENDED {
        let extended = __cpuid(EXTENDED + 1);
        words.extend([extended.ecx, extended.edx]);
    }
    words.into_iter().map(u64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_machine_is_the_same() {
        assert_eq!(cpu_features(), std::thread::spawn(cpu_features).join().unwrap());
        assert!(cpu_features().len() > 7);
        assert!(kernel_release().unwrap().len() > 3);
    }
}

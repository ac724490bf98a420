//! Bounds of everything that a snapshot counts or measures. What is above them is refused, before it is allocated.

/// Longest frame when decoded, bytes: also the window that decoding may look back into.
pub const FRAME_RAW_BYTES_MAX: u32 = 2 << 20;
/// Longest frame as stored, bytes: what a buffer to read into needs. zstd adds at most 1/256 to what it cannot shrink.
pub const FRAME_STORED_BYTES_MAX: u32 = FRAME_RAW_BYTES_MAX + FRAME_RAW_BYTES_MAX / 256;
/// Most frames.
pub const FRAMES_MAX: usize = 1 << 15;
/// Longest data area: what all frames decode to, bytes.
pub const DATA_BYTES_MAX: u64 = 32 << 30;
/// Longest description of an image, encoded, bytes.
pub const DESCRIPTION_BYTES_MAX: u32 = 2 << 20;

/// Most mappings.
pub const MAPPINGS_MAX: usize = 4096;
/// Most extents; the kernel allows 65,530 mappings, and an extent may take one.
pub const EXTENTS_MAX: usize = 1 << 14;
/// Most address space that mappings take together, bytes.
pub const MAPPED_BYTES_MAX: u64 = 1 << 40;
/// Lowest address that may be mapped: `vm.mmap_min_addr`.
pub const ADDRESS_MIN: u64 = 64 << 10;
/// End of the addresses of a process: 47 bits less a page.
pub const ADDRESS_END: u64 = (1 << 47) - 4096;

/// Length of `user_regs_struct`, bytes.
pub const GENERAL_BYTES: usize = 27 * 8;
/// Shortest extended state: XSAVE's legacy area and header, bytes.
pub const EXTENDED_BYTES_MIN: usize = 576;
/// Longest extended state, with room above AMX's 11 KiB, bytes.
pub const EXTENDED_BYTES_MAX: usize = 16 << 10;
/// Longest auxiliary vector, bytes.
pub const AUXV_BYTES_MAX: usize = 1024;
/// Longest note, bytes.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// Longest name of a thread, bytes.
pub const COMM_BYTES_MAX: usize = 15;
/// Longest kernel release, bytes.
pub const KERNEL_RELEASE_BYTES_MAX: usize = 256;
/// Longest device section, bytes.
pub const DEVICE_BYTES_MAX: u32 = 64 << 10;
/// Most accelerators of one function.
pub const ACCELERATORS_MAX: usize = 16;
/// Longest name of an accelerator or version of its driver, bytes.
pub const ACCELERATOR_NAME_BYTES_MAX: usize = 128;
/// Most words of CPU features.
pub const CPU_FEATURES_MAX: usize = 256;
/// Shortest and longest restartable sequence area, bytes.
pub const RSEQ_BYTES: std::ops::RangeInclusive<u32> = 32..=4096;
/// Shortest alternate signal stack that the kernel takes, bytes.
pub const SIGNAL_STACK_BYTES_MIN: u64 = 2048;

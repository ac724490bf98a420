//! What of the machine functions may use: as configured, else all cores and all memory but the host's reserve.

use crate::exit::Failure;
use appliance_config::ServeConfig;
use appliance_pool::Resources;
use sandbox_kernel::memory::host_bytes;

/// Least memory that the host keeps, where that is not more than half of it: for the kernel, ourselves, spares, and the
/// page cache of what is written.
const RESERVE_BYTES_MIN: u64 = 1 << 30;

/// Reads the machine.
///
/// # Errors
/// The kernel does not tell.
pub(crate) fn resources(config: &ServeConfig) -> Result<Resources, Failure> {
    let cores = appliance_runtime::available_cores().map_err(Failure::of("count", "the cores"))?.len();
    let host = host_bytes().map_err(Failure::of("look at", "the memory"))?;
    Ok(Resources {
        cores: config.inference_cores.unwrap_or(u32::try_from(cores).unwrap_or(u32::MAX)),
        memory: config.memory_bytes.unwrap_or(host - reserve(host)).min(host),
    })
}

/// What the host keeps: an eighth, but no less than [`RESERVE_BYTES_MIN`].
fn reserve(host: u64) -> u64 {
    (host / 8).max(RESERVE_BYTES_MIN).min(host / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_keeps_a_part() {
        for (host_gib, kept_mib) in [(1, 512), (2, 1024), (4, 1024), (16, 2048), (64, 8192)] {
            assert_eq!(reserve(host_gib << 30) >> 20, kept_mib, "{host_gib} GiB");
        }
    }

    #[test]
    fn what_is_configured_is_used_up_to_what_there_is() {
        let with = |memory_bytes| resources(&ServeConfig { memory_bytes, ..ServeConfig::default() }).unwrap().memory;
        let host = host_bytes().unwrap();
        assert_eq!((with(Some(1 << 30)), with(Some(u64::MAX)), with(None)), (1 << 30, host, host - reserve(host)));
    }
}

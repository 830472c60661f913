//! Azure's sizes of virtual machines: what a node of each has.

/// A size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSize {
    pub name: &'static str,
    pub cores: u32,
    pub memory_gib: u32,
}

const fn size(name: &'static str, cores: u32, memory_gib: u32) -> VmSize {
    VmSize {
        name,
        cores,
        memory_gib,
    }
}

/// Those that AKS takes for nodes, at least two cores and four GiB for system pools.
pub const VM_SIZES: &[VmSize] = &[
    size("Standard_A2_v2", 2, 4),
    size("Standard_A4_v2", 4, 8),
    size("Standard_A2m_v2", 2, 16),
    size("Standard_B2s", 2, 4),
    size("Standard_B2ms", 2, 8),
    size("Standard_B4ms", 4, 16),
    size("Standard_B8ms", 8, 32),
    size("Standard_B2s_v2", 2, 8),
    size("Standard_B4s_v2", 4, 16),
    size("Standard_D2_v2", 2, 7),
    size("Standard_D3_v2", 4, 14),
    size("Standard_D4_v2", 8, 28),
    size("Standard_DS2_v2", 2, 7),
    size("Standard_DS3_v2", 4, 14),
    size("Standard_DS4_v2", 8, 28),
    size("Standard_DS5_v2", 16, 56),
    size("Standard_D2_v3", 2, 8),
    size("Standard_D4_v3", 4, 16),
    size("Standard_D8_v3", 8, 32),
    size("Standard_D2s_v3", 2, 8),
    size("Standard_D4s_v3", 4, 16),
    size("Standard_D8s_v3", 8, 32),
    size("Standard_D16s_v3", 16, 64),
    size("Standard_D32s_v3", 32, 128),
    size("Standard_D64s_v3", 64, 256),
    size("Standard_D2s_v4", 2, 8),
    size("Standard_D4s_v4", 4, 16),
    size("Standard_D2as_v4", 2, 8),
    size("Standard_D4as_v4", 4, 16),
    size("Standard_D2s_v5", 2, 8),
    size("Standard_D4s_v5", 4, 16),
    size("Standard_D8s_v5", 8, 32),
    size("Standard_D16s_v5", 16, 64),
    size("Standard_D2ds_v5", 2, 8),
    size("Standard_D4ds_v5", 4, 16),
    size("Standard_D8ds_v5", 8, 32),
    size("Standard_D2as_v5", 2, 8),
    size("Standard_D4as_v5", 4, 16),
    size("Standard_D2ads_v5", 2, 8),
    size("Standard_D4ads_v5", 4, 16),
    size("Standard_D2s_v6", 2, 8),
    size("Standard_D4s_v6", 4, 16),
    size("Standard_E2_v3", 2, 16),
    size("Standard_E2s_v3", 2, 16),
    size("Standard_E4s_v3", 4, 32),
    size("Standard_E8s_v3", 8, 64),
    size("Standard_E16s_v3", 16, 128),
    size("Standard_E64s_v3", 64, 432),
    size("Standard_E2s_v5", 2, 16),
    size("Standard_E4s_v5", 4, 32),
    size("Standard_E8s_v5", 8, 64),
    size("Standard_F2s_v2", 2, 4),
    size("Standard_F4s_v2", 4, 8),
    size("Standard_F8s_v2", 8, 16),
    size("Standard_F16s_v2", 16, 32),
    size("Standard_M64s", 64, 1024),
    size("Standard_M128s", 128, 2048),
];

/// What `az aks create` takes when it is given none.
pub const DEFAULT: &str = "Standard_D2s_v3";

/// Finds a size; case does not matter, as in ARM.
#[must_use]
pub fn find(name: &str) -> Option<&'static VmSize> {
    VM_SIZES
        .iter()
        .find(|size| size.name.eq_ignore_ascii_case(name))
}

// === impl VmSize ===

impl VmSize {
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_gib) << 30
    }

    #[must_use]
    pub fn milli_cpu(&self) -> u64 {
        u64::from(self.cores) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_by_any_case_and_listed_once() {
        assert_eq!(find("standard_d2S_V3"), find(DEFAULT));
        assert_eq!(find(DEFAULT).unwrap().memory_bytes(), 8 << 30);
        assert!(find("Standard_Nothing").is_none());
        for (index, size) in VM_SIZES.iter().enumerate() {
            assert!(size.cores >= 2 && size.memory_gib >= 4, "{}", size.name);
            assert!(
                VM_SIZES[..index].iter().all(|s| s.name != size.name),
                "{}",
                size.name
            );
        }
    }
}

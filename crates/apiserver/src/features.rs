//! Feature gates: what upstream serves only when it is told to.

use anyhow::bail;

/// The gates that make a difference here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `CBORServingAndStorage`: `application/cbor` for requests, responses and apply. Alpha, off by default.
    pub cbor: bool,
}

impl Features {
    /// Parses `--feature-gates`: `Name=true,Other=false`. Gates of behaviour that is always on or not there are accepted,
    /// so that upstream's command lines work.
    ///
    /// # Errors
    /// When a gate has no value or one that is no boolean.
    pub fn parse(gates: &str) -> anyhow::Result<Self> {
        let mut features = Self::default();
        for gate in gates.split(',').map(str::trim).filter(|g| !g.is_empty()) {
            let Some((name, value)) = gate.split_once('=') else {
                bail!("missing bool value for {gate}");
            };
            let on = match value.trim() {
                "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
                "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
                other => bail!("invalid value of {name}: {other}, err: invalid syntax"),
            };
            match name.trim() {
                "CBORServingAndStorage" | "AllAlpha" => features.cbor = on,
                _ => {}
            }
        }
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates() {
        assert!(!Features::parse("").unwrap().cbor);
        let given = Features::parse("Other=false, CBORServingAndStorage=true");
        assert!(given.unwrap().cbor);
        assert!(Features::parse("CBORServingAndStorage").is_err());
        assert!(Features::parse("X=maybe").is_err());
    }
}

use std::fmt;

/// Which device to open. The default is the best: discrete before integrated before software.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceChoice {
    /// Part of the device's name, in any case.
    pub name: Option<String>,
    /// Index in the backend's list of devices: it tells two equal GPUs apart. If a name is given
    /// too, the device at that index must have it.
    pub index: Option<usize>,
}

impl DeviceChoice {
    /// The best device.
    pub const fn new() -> Self {
        Self { name: None, index: None }
    }

    /// A device whose name contains `name`, in any case.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The device at `index` of the backend's list.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// Whether the choice allows the device `name` at `index`.
    pub fn allows(&self, index: usize, name: &str) -> bool {
        let contains = |wanted: &String| name.to_lowercase().contains(&wanted.to_lowercase());
        self.index.is_none_or(|wanted| wanted == index) && self.name.as_ref().is_none_or(contains)
    }

    /// Why none of the devices `found` was chosen, as the end of an error message.
    pub fn not_among(&self, found: &[String]) -> String {
        let numbered: Vec<_> =
            found.iter().enumerate().map(|(n, name)| format!("{n}: {name}")).collect();
        format!("found {}", numbered.join(", "))
    }
}

/// As it follows the word "adapter" or "device": ` number 1 with a name like "x"`, or nothing.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, " number {index}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " with a name like `{name}`")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceChoice;

    #[test]
    fn a_choice_needs_index_and_name_to_match() {
        let choice = DeviceChoice::new().index(1).name("RTX");
        assert!(choice.allows(1, "NVIDIA GeForce rtx 4090"));
        assert!(!choice.allows(0, "NVIDIA GeForce rtx 4090") && !choice.allows(1, "llvmpipe"));
        assert!(DeviceChoice::new().allows(7, ""));
        assert_eq!(choice.to_string(), " number 1 with a name like `RTX`");
    }
}

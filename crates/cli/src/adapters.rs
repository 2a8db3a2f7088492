//! From the command line to adapters, open devices and sessions.

use crate::{args::ChoiceArgs, complain};
use anyhow::Result;
use flashtile::{
    Attention,
    wgpu::{AdapterChoice, Context, adapters_blocking, open_blocking},
};

fn by_name(name: &str) -> AdapterChoice {
    AdapterChoice { name: Some(name.to_owned()), ..AdapterChoice::default() }
}

/// A session on the adapter that was asked for, or on the best.
pub(crate) fn session(choice: &ChoiceArgs) -> Attention {
    choice.adapter.as_deref().map_or_else(Attention::new, |name| Attention::with_adapter(by_name(name)))
}

/// A device on the adapter that was asked for, or on every one there is.
pub(crate) fn contexts(choice: &ChoiceArgs) -> Result<Vec<Context>> {
    contexts_with(choice, false)
}

/// As [`contexts`]; with `baseline`, as a browser would open them.
pub(crate) fn contexts_with(choice: &ChoiceArgs, baseline: bool) -> Result<Vec<Context>> {
    let open = |name: &str| open_blocking(&AdapterChoice { baseline, ..by_name(name) });
    if let Some(name) = &choice.adapter {
        return Ok(vec![open(name)?]);
    }
    let mut names: Vec<String> = Vec::new();
    for adapter in adapters_blocking() {
        if !names.contains(&adapter.info.name) {
            names.push(adapter.info.name);
        }
    }
    let opened = names.iter().map(|name| open(name));
    Ok(opened.filter_map(|opened| opened.map_err(|e| complain(&format!("left out: {e}"))).ok()).collect())
}

/// The adapter's name and graphics API.
pub(crate) fn device_name(context: &Context) -> String {
    let info = context.adapter_info();
    format!("{} ({:?})", info.name, info.backend)
}

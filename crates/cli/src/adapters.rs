//! From the command line to adapters and cards, open devices and sessions.

use crate::{args::ChoiceArgs, complain};
use anyhow::Result;
use flashtile::{
    Attention, BackendKind,
    cuda::{self, DeviceChoice},
    wgpu::{AdapterChoice, Context, adapters_blocking, open_blocking},
};

/// A number is a place in the list of `devices`, anything else a part of a name.
fn index_or_name(adapter: &str) -> (Option<usize>, Option<String>) {
    match adapter.parse() {
        Ok(index) => (Some(index), None),
        Err(_) => (None, Some(adapter.to_owned())),
    }
}

fn named(adapter: &str) -> AdapterChoice {
    let (index, name) = index_or_name(adapter);
    AdapterChoice { index, name, ..AdapterChoice::default() }
}

fn named_card(adapter: &str) -> DeviceChoice {
    let (index, name) = index_or_name(adapter);
    DeviceChoice { index, name }
}

/// A session on the adapter or card that was asked for, or on the best.
pub(crate) fn session(choice: &ChoiceArgs) -> Attention {
    match (choice.adapter.as_deref(), choice.choice().backend) {
        (None, _) => Attention::new(),
        (Some(adapter), Some(BackendKind::Cuda)) => Attention::with_card(named_card(adapter)),
        (Some(adapter), _) => Attention::with_adapter(named(adapter)),
    }
}

/// The card that was asked for, or every one there is; no driver is no card, unless CUDA was asked for.
pub(crate) fn cards(choice: &ChoiceArgs) -> Result<Vec<cuda::Context>> {
    if let Some(adapter) = &choice.adapter {
        return Ok(vec![cuda::open(&named_card(adapter))?]);
    }
    let found = match cuda::devices() {
        Err(_) if choice.choice().backend.is_none() => Vec::new(),
        found => found?,
    };
    let open = |index| cuda::open(&DeviceChoice { index: Some(index), name: None });
    let opened = found.into_iter().map(|card| open(card.index));
    Ok(opened
        .filter_map(|opened| opened.map_err(|e| complain(&format!("left out: {e}"))).ok())
        .collect())
}

/// A device on the adapter that was asked for, or on every one there is.
pub(crate) fn contexts(choice: &ChoiceArgs) -> Result<Vec<Context>> {
    contexts_with(choice, false)
}

/// As [`contexts`]; with `baseline`, as a browser would open them.
pub(crate) fn contexts_with(choice: &ChoiceArgs, baseline: bool) -> Result<Vec<Context>> {
    if let Some(adapter) = &choice.adapter {
        return Ok(vec![open_blocking(&AdapterChoice { baseline, ..named(adapter) })?]);
    }
    let cards: Vec<_> =
        adapters_blocking().into_iter().map(|a| (a.info.name, a.info.backend)).collect();
    let open = |index| {
        open_blocking(&AdapterChoice { index: Some(index), baseline, ..AdapterChoice::default() })
    };
    let opened = once_each(&cards).into_iter().map(open);
    Ok(opened
        .filter_map(|opened| opened.map_err(|e| complain(&format!("left out: {e}"))).ok())
        .collect())
}

/// Places in the list without those that show a card again through another graphics API; two equal cards under one API are two.
fn once_each<Api: PartialEq>(cards: &[(String, Api)]) -> Vec<usize> {
    let first_api =
        |name: &String| cards.iter().find(|(other, _)| other == name).map(|(_, api)| api);
    (0..cards.len()).filter(|&n| first_api(&cards[n].0) == Some(&cards[n].1)).collect()
}

/// The adapter's name and graphics API.
pub(crate) fn device_name(context: &Context) -> String {
    let info = context.adapter_info();
    format!("{} ({:?})", info.name, info.backend)
}

/// The card's name.
pub(crate) fn card_name(context: &cuda::Context) -> String {
    format!("{} (CUDA)", context.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_and_words_are_names() {
        assert_eq!(named("1"), AdapterChoice { index: Some(1), ..AdapterChoice::default() });
        for name in ["rtx 4090", "-1", "1.0", ""] {
            assert_eq!(
                named(name),
                AdapterChoice { name: Some(name.to_owned()), ..AdapterChoice::default() }
            );
        }
    }

    #[test]
    fn twins_are_two_and_a_card_under_two_apis_is_one() {
        let cards = [
            ("A", "Vulkan"),
            ("A", "Vulkan"),
            ("B", "Gl"),
            ("A", "Dx12"),
            ("C", "Vulkan"),
            ("C", "Gl"),
        ];
        let cards: Vec<_> = cards.into_iter().map(|(name, api)| (name.to_owned(), api)).collect();
        assert_eq!(once_each(&cards), [0, 1, 2, 4]);
    }
}

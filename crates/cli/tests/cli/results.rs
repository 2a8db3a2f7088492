//! Every option of `run`, by its effect on a result that was worked out by hand.

use crate::{Scene, Tensor, stderr, stdout, tensor, three_keys};
use approx::{assert_abs_diff_eq, relative_eq};
use safetensors::Dtype;
use std::fs;

/// Options and tensors added to [`three_keys`], and the output and lse that follow.
struct Case {
    args: &'static [&'static str],
    more: Vec<Tensor>,
    out: f64,
    lse: f64,
}

fn case(args: &'static [&'static str], more: Vec<Tensor>, out: f64, lse: f64) -> Case {
    Case { args, more, out, lse }
}

fn cases() -> Vec<Case> {
    let ln = f64::ln;
    let inf = f64::INFINITY;
    let tanh = |s: f64| s.tanh().exp();
    let capped = [1.0, tanh(ln(2.0)), tanh(ln(5.0))];
    let first_two = (40.0 / 3.0, ln(3.0));
    let mask =
        |dtype, shape: &[usize], values: &[f64]| vec![tensor("attn_mask", dtype, shape, values)];
    let lens = |dtype| vec![tensor("kv_lens", dtype, &[1], &[2.0])];
    vec![
        case(&[], vec![], 20.0, ln(8.0)),
        case(&["--scale", "-1"], vec![], (8.0 + 8.0 + 4.8) / 1.7, ln(1.7)),
        case(&["--scale=-1e0"], vec![], (8.0 + 8.0 + 4.8) / 1.7, ln(1.7)),
        case(&["--scale", "0"], vec![], 16.0, ln(3.0)),
        case(
            &["--softcap", "1"],
            vec![],
            (8.0 * capped[0] + 16.0 * capped[1] + 24.0 * capped[2]) / capped.iter().sum::<f64>(),
            ln(capped.iter().sum()),
        ),
        case(&["--causal"], vec![], 8.0, 0.0),
        case(&["--causal", "--align", "top-left"], vec![], 8.0, 0.0),
        case(&["--causal", "--align=bottom-right"], vec![], 20.0, ln(8.0)),
        case(&["--causal", "--align", "1"], vec![], first_two.0, first_two.1),
        case(&["--causal", "--align", "-1"], vec![], 0.0, -inf),
        case(&["--align", "2", "--window-left", "0"], vec![], 24.0, ln(5.0)),
        case(
            &["--align=2", "--window-left=1", "--window-right=0"],
            vec![],
            (32.0 + 120.0) / 7.0,
            ln(7.0),
        ),
        case(&["--window-right", "1"], vec![], first_two.0, first_two.1),
        case(
            &["--dropout-p", "1", "--seed", "18446744073709551615", "--offset", "4294967295"],
            vec![],
            0.0,
            ln(8.0),
        ),
        case(
            &["--kernel", "unfused", "--layout", "bshd", "--heads", "1", "--kv-heads=1"],
            vec![],
            20.0,
            ln(8.0),
        ),
        case(&[], mask(Dtype::BOOL, &[3], &[1.0, 0.0, 1.0]), (8.0 + 120.0) / 6.0, ln(6.0)),
        case(&[], mask(Dtype::BOOL, &[1, 1, 1, 1], &[0.0]), 0.0, -inf),
        case(&[], mask(Dtype::F32, &[1, 3], &[0.0, -inf, ln(2.0)]), 248.0 / 11.0, ln(11.0)),
        case(&[], mask(Dtype::F16, &[1, 1, 3], &[0.0, -inf, 0.0]), 128.0 / 6.0, ln(6.0)),
        case(&[], mask(Dtype::BF16, &[1, 1, 1, 3], &[-inf, -inf, 0.0]), 24.0, ln(5.0)),
        case(&["--causal"], mask(Dtype::BOOL, &[3], &[0.0, 1.0, 1.0]), 0.0, -inf),
        case(&[], lens(Dtype::I32), first_two.0, first_two.1),
        case(&[], lens(Dtype::I64), first_two.0, first_two.1),
        case(&["--causal", "--align", "bottom-right"], lens(Dtype::I64), first_two.0, first_two.1),
        case(&[], vec![tensor("unrelated", Dtype::I8, &[2], &[1.0, 2.0])], 20.0, ln(8.0)),
    ]
}

#[test]
fn every_option_does_what_it_says() {
    let mut wrong = Vec::new();
    for Case { args, more, out, lse } in cases() {
        let scene = Scene::new(&[three_keys(), more].concat());
        let output = scene.run(&[args, &["--backend", "reference", "--lse"]].concat());
        let near = |name: &str, shape: &[usize], expected: f64| match scene.out(name) {
            Some((Dtype::F32, got, values)) => {
                got == shape && relative_eq!(values[0], expected, epsilon = 1e-5)
            }
            _ => false,
        };
        if !output.status.success()
            || !stderr(&output).is_empty()
            || !near("out", &[1, 1, 1, 1], out)
            || !near("lse", &[1, 1, 1], lse)
        {
            wrong.push(format!(
                "{args:?}: {:?} {:?} {}",
                scene.out("out"),
                scene.out("lse"),
                stderr(&output)
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn auto_runs_and_never_takes_the_oracle() {
    let scene = Scene::new(&three_keys());
    let output = scene.run(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (_, _, values) = scene.out("out").expect("written");
    assert_abs_diff_eq!(values[0], 20.0, epsilon = 1e-4);
    assert!(scene.out("lse").is_none(), "it was not requested");
    assert_eq!(stderr(&output), "");
    let printed = stdout(&output);
    let kernel = printed.lines().find(|line| line.starts_with("kernel")).expect("what ran");
    assert!(!kernel.contains("reference unfused:"), "{kernel}");
    assert!(kernel.contains("first that runs"), "{kernel}");
}

#[test]
fn results_have_the_dtype_and_layout_of_q() {
    let value = |b: usize, h: usize, s: usize| (b * 6 + h * 3 + s) as f64;
    for (layout, shape, order) in [
        ("bshd", vec![2, 3, 2, 1], [0, 2, 1]),
        ("bhsd", vec![2, 2, 3, 1], [0, 1, 2]),
        ("hbsd", vec![2, 2, 3, 1], [1, 0, 2]),
        ("bsd", vec![2, 3, 2], [0, 2, 1]),
    ] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            // The mask lets every query see only its own key: the output is v.
            let sizes = [2, 2, 3];
            let mut values = vec![];
            for x in 0..sizes[order[0]] {
                for y in 0..sizes[order[1]] {
                    for z in 0..sizes[order[2]] {
                        let mut place = [0; 3];
                        (place[order[0]], place[order[1]], place[order[2]]) = (x, y, z);
                        values.push(value(place[0], place[1], place[2]));
                    }
                }
            }
            let mask: Vec<f64> = (0..9).map(|n| if n % 4 == 0 { 1.0 } else { 0.0 }).collect();
            let scene = Scene::new(&[
                tensor("q", dtype, &shape, &values),
                tensor("k", dtype, &shape, &values),
                tensor("v", dtype, &shape, &values),
                tensor("attn_mask", Dtype::BOOL, &[3, 3], &mask),
            ]);
            let packed: &[&str] =
                if layout == "bsd" { &["--heads", "2", "--kv-heads", "2"] } else { &[] };
            let output =
                scene.run(&[&["--layout", layout, "--backend", "reference"], packed].concat());
            assert!(output.status.success(), "{layout}: {}", stderr(&output));
            assert_eq!(scene.out("out"), Some((dtype, shape.clone(), values)), "{layout}");
        }
    }
}

#[test]
fn heads_are_grouped_and_widths_differ() {
    // Four query heads of width 2 over two key heads, one key, values of width 3.
    let scene = Scene::new(&[
        tensor("q", Dtype::F32, &[1, 1, 8], &[1.0; 8]),
        tensor("k", Dtype::F32, &[1, 1, 4], &[1.0; 4]),
        tensor("v", Dtype::F32, &[1, 1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ]);
    let output = scene.run(&["--layout=bsd", "--heads=4", "--kv-heads=2", "--backend=reference"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let expected = vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0];
    assert_eq!(scene.out("out"), Some((Dtype::F32, vec![1, 1, 12], expected)));
}

#[test]
fn the_past_comes_first() {
    // three_keys with its first key and value in the past (bhsd). Mask and kv_lens count all three.
    let scene = Scene::new(&[
        tensor("q", Dtype::F32, &[1, 1, 1, 1], &[1.0]),
        tensor("k", Dtype::F32, &[1, 2, 1, 1], &[2f64.ln(), 5f64.ln()]),
        tensor("v", Dtype::F32, &[1, 2, 1, 1], &[16.0, 24.0]),
        tensor("past_key", Dtype::F32, &[1, 1, 1, 1], &[0.0]),
        tensor("past_value", Dtype::F32, &[1, 1, 1, 1], &[8.0]),
        tensor("kv_lens", Dtype::I64, &[1], &[3.0]),
        tensor("attn_mask", Dtype::BOOL, &[3], &[1.0; 3]),
    ]);
    for (args, expected) in
        [(&[][..], 20.0), (&["--causal"], 8.0), (&["--causal", "--align", "1"], 40.0 / 3.0)]
    {
        let output = scene.run(&[args, &["--backend", "reference"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let (_, _, values) = scene.out("out").expect("written");
        assert_abs_diff_eq!(values[0], expected, epsilon = 1e-5);
    }
}

#[test]
fn empty_problems_have_empty_or_zero_results() {
    for (q, kv, expected) in
        [([0, 3, 2, 4], [0, 5, 2, 4], vec![]), ([1, 0, 2, 4], [1, 5, 2, 4], vec![])]
    {
        let zeroes = |shape: [usize; 4]| vec![0.5; shape.iter().product()];
        let [k, v] = ["k", "v"].map(|name| tensor(name, Dtype::F32, &kv, &zeroes(kv)));
        let scene = Scene::new(&[tensor("q", Dtype::F32, &q, &zeroes(q)), k, v]);
        let output = scene.run(&["--lse", "--verify"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(scene.out("out"), Some((Dtype::F32, q.to_vec(), expected)));
    }
    // No keys: every row is 0, and its lse -inf.
    let scene = Scene::new(&[
        tensor("q", Dtype::F16, &[1, 2, 1, 3], &[1.0; 6]),
        tensor("k", Dtype::F16, &[1, 0, 1, 3], &[]),
        tensor("v", Dtype::F16, &[1, 0, 1, 2], &[]),
    ]);
    let output = scene.run(&["--lse"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(scene.out("out"), Some((Dtype::F16, vec![1, 2, 1, 2], vec![0.0; 4])));
    assert_eq!(scene.out("lse"), Some((Dtype::F32, vec![1, 1, 2], vec![f64::NEG_INFINITY; 2])));
}

#[test]
fn countless_heads_without_queries_end_at_once() {
    let scene = Scene::new(&[
        tensor("q", Dtype::F32, &[1, 0, 1 << 40, 1], &[]),
        tensor("k", Dtype::F32, &[1, 0, 1 << 40, 1], &[]),
        tensor("v", Dtype::F32, &[1, 0, 1 << 40, 1], &[]),
    ]);
    let output = scene.run(&["--backend", "reference", "--verify"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(scene.out("out"), Some((Dtype::F32, vec![1, 0, 1 << 40, 1], vec![])));
}

#[test]
fn dropout_is_decided_by_its_seed_and_offset() {
    let scene = Scene::new(&[
        tensor("q", Dtype::F32, &[1, 64, 1, 1], &[1.0; 64]),
        tensor("k", Dtype::F32, &[1, 64, 1, 1], &[0.0; 64]),
        tensor("v", Dtype::F32, &[1, 64, 1, 1], &[1.0; 64]),
    ]);
    let draw = |seed: &str, offset: &str| {
        let args =
            ["--dropout-p", "0.5", "--seed", seed, "--offset", offset, "--backend", "reference"];
        assert!(scene.run(&args).status.success());
        scene.out("out").expect("written").2
    };
    let first = draw("7", "0");
    assert_eq!(first, draw("7", "0"));
    assert_ne!(first, draw("8", "0"));
    assert_ne!(first, draw("7", "1"));
    // Weights are 1/64, doubled where kept: rows are multiples of 1/32 around 1.
    let mean = first.iter().sum::<f64>() / 64.0;
    assert!(
        first.iter().all(|x| (x * 32.0).fract() == 0.0) && (0.8..1.2).contains(&mean),
        "{first:?}"
    );
}

#[test]
fn the_output_replaces_a_file_as_a_whole_even_the_input() {
    let scene = Scene::new(&three_keys());
    fs::write(scene.path("out.safetensors"), "old").expect("writable");
    assert!(scene.run(&["--backend", "reference"]).status.success());
    assert!(scene.out("out").is_some());
    let args = ["run", "in.safetensors", "--output", "in.safetensors", "--backend", "reference"];
    assert!(scene.flashtile(&args).status.success());
    assert_eq!(scene.files(), ["in.safetensors", "out.safetensors"], "nothing else is left behind");
    assert_eq!(
        fs::read(scene.path("in.safetensors")).expect("readable"),
        fs::read(scene.path("out.safetensors")).expect("readable")
    );
}

#[cfg(unix)]
#[test]
fn links_and_devices_are_written_to_and_not_replaced() {
    let scene = Scene::new(&three_keys());
    fs::write(scene.path("real"), "old").expect("writable");
    std::os::unix::fs::symlink("real", scene.path("out.safetensors")).expect("links");
    assert!(scene.run(&["--backend", "reference"]).status.success());
    assert!(scene.path("out.safetensors").is_symlink() && scene.out("out").is_some());
    let args = ["run", "in.safetensors", "--output", "/dev/null", "--backend", "reference"];
    assert!(scene.flashtile(&args).status.success());
    assert!(!fs::metadata("/dev/null").expect("still there").is_file());
}

#[test]
fn verify_reports_shares_of_the_bound_and_fails_on_what_is_not_expected() {
    let scene = Scene::new(
        &[three_keys(), vec![tensor("expected", Dtype::F64, &[1, 1, 1, 1], &[20.0])]].concat(),
    );
    let output = scene.run(&["--verify", "--lse"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(printed.contains("of the error bound, against `expected` in the file"), "{printed}");
    assert!(printed.contains("lse against the oracle"), "{printed}");

    let scene = Scene::new(
        &[three_keys(), vec![tensor("expected", Dtype::F32, &[1, 1, 1, 1], &[20.1])]].concat(),
    );
    let output = scene.run(&["--verify"]);
    assert!(!output.status.success() && scene.out("out").is_none());
    assert!(stderr(&output).contains("of the error bound"), "{}", stderr(&output));
}

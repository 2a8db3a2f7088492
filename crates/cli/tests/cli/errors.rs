//! Bad input: one line on stderr that names the argument, a non-zero exit status, and no output
//! file, not even a part of one.

use crate::{Scene, Tensor, stderr, tensor, three_keys};
use safetensors::Dtype;
use std::{fs, process::Output};

/// Checks that a run failed as promised; returns what is wrong, if anything is.
fn fails(scene: &Scene, output: &Output, message: &str) -> Option<String> {
    let printed = stderr(output);
    let one_line = printed.starts_with("flashtile: ")
        && printed.ends_with('\n')
        && printed.lines().count() == 1;
    let clean = scene.files() == ["in.safetensors"];
    let right = matches!(output.status.code(), Some(1 | 2)) && output.stdout.is_empty();
    let named = printed.contains(message);
    (!one_line || !clean || !right || !named).then(|| {
        format!("expected `{message}`, got {:?} {printed:?} {:?}", output.status, scene.files())
    })
}

#[test]
fn arguments() {
    let cases: &[(&[&str], &str)] = &[
        (&["--layout", "sbhd"], "unknown layout `sbhd`: expected bshd, bhsd, hbsd or bsd"),
        (&["--layout"], "a value is required for '--layout <LAYOUT>'"),
        (&["--backend", "vulkan"], "invalid value 'vulkan' for '--backend <BACKEND>'"),
        (&["--kernel", "fast"], "invalid value 'fast' for '--kernel <KERNEL>'"),
        (&["--scale", "--causal"], "invalid value '--causal' for '--scale <SCALE>'"),
        (&["--scale", "nan"], "scale must be finite, but is NaN"),
        (&["--scale=-inf"], "scale must be finite, but is -inf"),
        (&["--softcap", "-2"], "softcap must be a positive finite number, but is -2"),
        (&["--softcap", "0"], "softcap must be a positive finite number, but is 0"),
        (&["--align", "middle"], "unknown alignment `middle`"),
        (
            &["--window-left", "-1"],
            "invalid value '-1' for '--window-left <WINDOW_LEFT>': expected a number of keys",
        ),
        (&["--window-right", "1.5"], "invalid value '1.5' for '--window-right <WINDOW_RIGHT>'"),
        (&["--dropout-p", "-0.1"], "dropout_p must lie in [0, 1], but is -0.1"),
        (&["--dropout-p", "nan"], "dropout_p must lie in [0, 1], but is NaN"),
        (&["--seed", "-1"], "invalid value '-1' for '--seed <SEED>'"),
        (&["--offset", "4294967296"], "invalid value '4294967296' for '--offset <OFFSET>'"),
        (&["--heads", "2"], "--heads is 2, but q has 1 heads"),
        (&["--kv-heads", "3"], "--kv-heads is 3, but k has 1 heads"),
        (&["--layout", "bsd"], "--heads is missing: layout bsd packs the heads of q"),
        (
            &["--layout", "bsd", "--heads", "1"],
            "q must have rank 3 in layout bsd, but its shape is [1, 1, 1, 1]",
        ),
        (&["--causal", "--causal"], "the argument '--causal' cannot be used multiple times"),
        (&["--sideways"], "unexpected argument '--sideways' found"),
        (&["another"], "unexpected argument 'another' found"),
        (&["--backend", "cuda", "--adapter", "99"], "no CUDA"),
        (&["--backend=cpu", "--kernel=unfused"], "the cpu backend has no unfused kernel"),
        (
            &["--backend=cpu", "--matrix-units=require"],
            "matrix units are required: the cpu backend has no kernel for them",
        ),
        (&["--backend=cpu", "--threads=0"], "--threads must be at least 1, but is 0"),
        (&["--backend=reference", "--kernel=flash"], "the reference backend has no flash kernel"),
        (&["--matrix-units", "on"], "invalid value 'on' for '--matrix-units <MATRIX_UNITS>'"),
        (
            &["--backend=reference", "--matrix-units=require"],
            "matrix units are required: the reference backend has no kernel for them",
        ),
        (&["--split", "300"], "unknown split `300`: expected auto, off or the keys of a chunk"),
        (
            &["--backend=reference", "--split=512"],
            "chunks of 512 keys were requested: the reference backend does not split keys",
        ),
        (&["--adapter=no such GPU"], "no graphics adapter with a name like `no such GPU`"),
        (&["--adapter", "1000"], "no graphics adapter number 1000"),
    ];
    let scene = Scene::new(&three_keys());
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|(args, message)| fails(&scene, &scene.run(args), message))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn commands() {
    let scene = Scene::new(&three_keys());
    let cases: &[(&[&str], &str)] = &[
        (&[], "a command is missing: run, devices, explain, check, tune or bench"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["run"], "the following required arguments were not provided: --output <OUTPUT> <INPUT>"),
        (
            &["run", "in.safetensors"],
            "the following required arguments were not provided: --output <OUTPUT>",
        ),
        (&["explain"], "the following required arguments were not provided: <INPUT>"),
        (&["explain", "absent"], "cannot read absent: No such file"),
        (
            &["check", "--filter", "no such group"],
            "no case contains `no such group`; the groups are lengths, ",
        ),
        (&["check", "--case", "shape=1x2"], "the case `shape=1x2` cannot be read"),
        (&["check", "--backend", "cuda", "--adapter", "99"], "no CUDA"),
        (&["bench", "--cases", "-"], "required arguments were not provided: --json"),
        (&["bench", "--json", "--cases", "absent"], "cannot read absent: No such file"),
        (
            &["bench", "--json", "--cases", "-", "--kernel", "flash"],
            "the argument '--cases <FILE>' cannot be used with '--kernel <KERNEL>'",
        ),
        (&["bench", "--shape", "1x2x3"], "expected BxHxSxD"),
        (&["bench", "--shape", "1x0x3x4"], "expected BxHxSxD"),
        (&["bench", "--dtype", "f64"], "invalid value 'f64' for '--dtype <DTYPE>'"),
        (
            &["bench", "--threads", "0", "--shape", "1x1x1x1"],
            "--threads must be at least 1, but is 0",
        ),
        (
            &["bench", "--backend", "cpu", "--kernel", "unfused"],
            "the cpu backend has no unfused kernel",
        ),
        (&["tune", "--shape", "1x2x3"], "expected BxHxSxD"),
        (&["tune", "--queries", "1"], "arguments were not provided: --shape <SHAPE>"),
        (
            &["tune", "--cases", "absent", "--causal"],
            "the argument '--cases <FILE>' cannot be used with '--causal'",
        ),
        (&["tune", "--seconds=-1"], "invalid value '-1' for '--seconds <SECONDS>'"),
        (&["tune", "--adapter", "no such adapter"], "no graphics adapter"),
        (&["check", "--tuning", "no/such/file"], "cannot read no/such/file: there is no such file"),
        (
            &["bench", "--backend", "reference", "--kernel", "flash"],
            "the reference backend has no flash kernel",
        ),
        (
            &["bench", "--shape", "1x1x8x8", "--backend", "reference", "--plot", "no/where.svg"],
            "cannot write no/where.svg",
        ),
    ];
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|(args, message)| fails(&scene, &scene.flashtile(args), message))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// [`three_keys`] with one tensor replaced or added.
fn with(changed: Tensor) -> Scene {
    let mut tensors = three_keys();
    tensors.retain(|t| t.name != changed.name);
    tensors.push(changed);
    Scene::new(&tensors)
}

#[test]
fn tensors() {
    let f32 =
        |name, shape: &[usize]| tensor(name, Dtype::F32, shape, &vec![1.0; shape.iter().product()]);
    let cases = [
        (tensor("q", Dtype::I8, &[1, 1, 1, 1], &[1.0]), "q must be F32, F16 or BF16, but is I8"),
        (
            tensor("k", Dtype::F64, &[1, 3, 1, 1], &[1.0; 3]),
            "k must be F32, F16 or BF16, but is F64",
        ),
        (tensor("k", Dtype::F16, &[1, 3, 1, 1], &[1.0; 3]), "k must be f32 like q, but is f16"),
        (f32("q", &[1, 1, 1]), "q must have rank 4 in layout bshd, but its shape is [1, 1, 1]"),
        (f32("v", &[]), "v must have rank 4 in layout bshd, but its shape is []"),
        (f32("q", &[2, 1, 1, 1]), "k must have batch 2 (the batch of q), but has 1"),
        (f32("q", &[1, 1, 1, 2]), "k must have head_dim 2 (the head_dim of q), but has 1"),
        (f32("k", &[1, 3, 2, 1]), "q has 1 heads, which is not a multiple of the 2 heads of k"),
        (f32("v", &[1, 4, 1, 1]), "v must have seq_kv 3 (the length of k), but has 4"),
        (f32("q", &[1, 1, 0, 1]), "q must have heads of at least 1, but has 0"),
        (f32("v", &[1, 3, 1, 0]), "v must have head_dim of at least 1, but has 0"),
        (f32("attn_mask", &[2]), "attn_mask of shape [1, 1, 1, 2] does not broadcast"),
        (f32("attn_mask", &[]), "attn_mask must have rank 1 to 4, but its shape is []"),
        (
            f32("attn_mask", &[1, 1, 1, 1, 3]),
            "attn_mask must have rank 1 to 4, but its shape is [1, 1, 1, 1, 3]",
        ),
        (
            tensor("attn_mask", Dtype::U8, &[3], &[1.0; 3]),
            "attn_mask must be BOOL, F32, F16 or BF16, but is U8",
        ),
        (
            tensor("attn_mask", Dtype::F64, &[3], &[1.0; 3]),
            "attn_mask must be BOOL, F32, F16 or BF16, but is F64",
        ),
        (tensor("kv_lens", Dtype::F32, &[1], &[1.0]), "kv_lens must be I32 or I64, but is F32"),
        (tensor("kv_lens", Dtype::I64, &[1], &[4.0]), "kv_lens[0] must lie in 0..=3, but is 4"),
        (tensor("kv_lens", Dtype::I32, &[1], &[-1.0]), "kv_lens[0] must lie in 0..=3, but is -1"),
        (
            tensor("kv_lens", Dtype::I64, &[1], &[4e18]),
            "kv_lens[0] must lie in 0..=3, but is 4000000000000000000",
        ),
        (
            tensor("kv_lens", Dtype::I64, &[2], &[1.0; 2]),
            "kv_lens must hold one length per batch entry, 1, but holds 2",
        ),
        (
            tensor("kv_lens", Dtype::I64, &[1, 1], &[1.0]),
            "kv_lens must have rank 1, but its shape is [1, 1]",
        ),
        (f32("past_key", &[1, 1, 1, 1]), "past_value is missing: past_key needs it"),
        (f32("past_value", &[1, 1, 1, 1]), "past_key is missing: past_value needs it"),
    ];
    let mut wrong = Vec::new();
    for (changed, message) in cases {
        let scene = with(changed);
        wrong.extend(fails(&scene, &scene.run(&["--backend", "reference"]), message));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn missing_tensors_and_past_that_does_not_fit() {
    let mut wrong = Vec::new();
    for name in ["q", "k", "v"] {
        let scene =
            Scene::new(&three_keys().into_iter().filter(|t| t.name != name).collect::<Vec<_>>());
        wrong.extend(fails(&scene, &scene.run(&[]), &format!("{name} is missing from the file")));
    }
    let past = |name, dtype, shape: &[usize]| {
        tensor(name, dtype, shape, &vec![1.0; shape.iter().product()])
    };
    for (key, value, message) in [
        (
            past("past_key", Dtype::F32, &[1, 2, 1, 1]),
            past("past_value", Dtype::F32, &[1, 1, 1, 1]),
            "past_key must have heads 1 (the heads of k), but has 2",
        ),
        (
            past("past_key", Dtype::F32, &[1, 1, 2, 1]),
            past("past_value", Dtype::F32, &[1, 1, 1, 1]),
            "v must have seq_kv 5 (the length of k), but has 4",
        ),
        (
            past("past_key", Dtype::F32, &[1, 1, 1, 1]),
            past("past_value", Dtype::F16, &[1, 1, 1, 1]),
            "past_value must be f32 like v, but is f16",
        ),
        (
            past("past_key", Dtype::F32, &[1, 1, 1]),
            past("past_value", Dtype::F32, &[1, 1, 1, 1]),
            "past_key must have rank 4 in layout bhsd",
        ),
    ] {
        let scene = Scene::new(&[three_keys(), vec![key, value]].concat());
        wrong.extend(fails(&scene, &scene.run(&[]), message));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn broken_files() {
    let whole = fs::read(Scene::new(&three_keys()).path("in.safetensors")).unwrap_or_default();
    assert!(!whole.is_empty());
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let tensor = |shape: &str, end: u64| {
        header(&format!(r#"{{"q":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#), 4)
    };
    let huge = (1u64 << 40).to_le_bytes();
    let cases: Vec<Vec<u8>> = vec![
        vec![],
        vec![1, 2, 3],
        whole[..whole.len() - 1].to_vec(),
        whole[..40].to_vec(),
        [whole.clone(), vec![0]].concat(),
        [&huge[..], &whole[8..]].concat(),
        [&[255; 8][..], &whole[8..]].concat(),
        header("not json", 0),
        header("[]", 0),
        header("{\"q\":3}", 0),
        tensor("[1099511627776,4,4,4]", 4),
        tensor("[18446744073709551615,2]", 4),
        tensor("[-1]", 4),
        tensor("[1]", 1 << 60),
        tensor("[2]", 4),
        b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8 random".to_vec(),
    ];
    let mut wrong = Vec::new();
    for bytes in cases {
        let scene = Scene::with_bytes(&bytes);
        wrong.extend(fails(&scene, &scene.run(&[]), "not a valid safetensors file: "));
        wrong.extend(fails(
            &scene,
            &scene.flashtile(&["explain", "in.safetensors"]),
            "not a valid safetensors file: ",
        ));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let scene = Scene::new(&three_keys());
    let folder = scene.folder.path().to_string_lossy().into_owned();
    let reference = ["--backend", "reference"];
    let cases: &[(&[&str], &str)] = &[
        (&["run", "absent", "--output", "out.safetensors"], "cannot read absent: No such file"),
        (&["run", &folder, "--output", "out.safetensors"], "not a regular file"),
        (&["run", "in.safetensors", "--output", &folder], "it is a folder"),
        (&["run", "in.safetensors", "--output", "."], "it is a folder"),
        (
            &["run", "in.safetensors", "--output", "absent/out"],
            "cannot write absent/out: No such file",
        ),
        (
            &["run", "in.safetensors", "--output", "in.safetensors/out"],
            "cannot write in.safetensors/out: Not a dir",
        ),
        (&["run", "in.safetensors", "--output", ""], "--output"),
    ];
    let mut wrong: Vec<_> = cases
        .iter()
        .filter_map(|(args, message)| {
            fails(&scene, &scene.flashtile(&[args, &reference[..]].concat()), message)
        })
        .collect();
    if cfg!(target_os = "linux") {
        for (args, message) in [
            (["run", "/dev/zero", "--output", "out.safetensors"], "not a regular file"),
            (
                ["run", "in.safetensors", "--output", "/dev/full"],
                "cannot write /dev/full: No space left",
            ),
        ] {
            wrong.extend(fails(
                &scene,
                &scene.flashtile(&[&args[..], &reference].concat()),
                message,
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_failure_leaves_an_older_output_as_it_was() {
    let scene = with(tensor("kv_lens", Dtype::I64, &[1], &[9.0]));
    fs::write(scene.path("out.safetensors"), "old").expect("writable");
    assert!(!scene.run(&[]).status.success());
    assert_eq!(fs::read(scene.path("out.safetensors")).expect("readable"), b"old");
    assert_eq!(scene.files(), ["in.safetensors", "out.safetensors"]);
}

//! Measured tile shapes, compiling ahead, and pipeline caches.

use super::{
    Check,
    embedding::{buffer, read},
};
use crate::shared::{bytes, dense, floats, hold, text};
use flashtile_core::{
    Align, DType, HostArgs, HostInputs, KernelKind, Mask, MaskKind, Problem, Verdict,
};
use flashtile_wgpu::{
    Args, Context, FLASH_TILES, HostRun, Outcome, PlanOptions, ProblemKind, TileChoice,
    TuneOptions, TuneResult, Tuning, wgpu,
};
use std::{collections::HashSet, time::Duration};
use wgpu::BufferUsages as Usage;

pub(super) const CHECKS: [(&str, Check); 6] = [
    ("a search finds a shape, and plans take it", search),
    ("a wrong shape never wins", wrong_shapes),
    ("ways to split keys are searched for few queries", splits),
    ("a table decides tiles, and not what a row is", table_and_batch),
    ("kernels are compiled ahead", ahead),
    ("a pipeline cache is used, and gives its data back", pipeline_cache),
];

fn problem(batch: usize, seq_q: usize, seq_kv: usize, dim: usize) -> Result<Problem, String> {
    let (q, kv) = (dense([batch, 2, seq_q, dim]), dense([batch, 2, seq_kv, dim]));
    let causal = Problem::builder(q, kv, kv).causal(true).align(Align::BottomRight);
    causal.build().map_err(text)
}

/// Searches among the planner's choice and `most` other shapes. It ends when they have run often
/// enough, long before its time is over. `verify` judges each output.
fn tune(
    context: &Context,
    problem: &Problem,
    most: usize,
    verify: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<TuneResult, String> {
    let [q, k, v] = tensors(problem);
    let mut out = vec![0; q.len()];
    let args = HostArgs::new(&q, &k, &v, &mut out);
    let options = TuneOptions::new().within(Duration::from_secs(600)).most(most).verify(verify);
    context.tune_blocking(problem, &args, options).map_err(text)
}

fn tensors(problem: &Problem) -> [Vec<u8>; 3] {
    let elements = |shape: [usize; 4]| shape.iter().product::<usize>();
    let (q, kv) = (elements(problem.q().shape), elements(problem.k().shape));
    [(1, q), (2, kv), (3, kv)].map(|(seed, count)| bytes(&floats(seed, count)))
}

fn search(context: &Context) -> Result<(), String> {
    let problem = problem(1, 100, 141, 16)?;
    let [q, k, v] = tensors(&problem);
    let inputs = HostInputs::new(&q, &k, &v);
    let mut held = 0;
    let found = tune(context, &problem, 3, &mut |out: &[u8]| {
        held += 1;
        hold(&problem, &inputs, out)
    })?;
    let planned = context.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
    let measured: Vec<_> =
        found.shapes.iter().filter(|s| matches!(s.outcome, Outcome::Measured { .. })).collect();
    if measured.len() != 4 || held != measured.len() || found.shapes.len() != 4 {
        return Err(format!("{held} verified; {:#?}", found.shapes));
    }
    let first: Vec<_> = found.shapes.iter().filter(|shape| shape.planned).collect();
    let [only] = first[..] else { return Err(format!("planned: {first:?}")) };
    let fair = matches!(only.outcome, Outcome::Measured { speedup, rounds, .. }
        if speedup == 1.0 && rounds > 0);
    if only.choice.tiles != planned.tiles() || !fair {
        return Err(format!("{only:?}, planned {}", planned.tiles()));
    }
    let mut seen = HashSet::new();
    if !found.shapes.iter().all(|shape| seen.insert(shape.choice)) {
        return Err(format!("a shape was tried twice: {:#?}", found.shapes));
    }
    let speedup = |outcome: &Outcome| match outcome {
        Outcome::Measured { speedup, .. } => *speedup,
        _ => 0.0,
    };
    if !found.shapes.is_sorted_by(|a, b| speedup(&a.outcome) >= speedup(&b.outcome)) {
        return Err(format!("not sorted: {:#?}", found.shapes));
    }

    let mut tuning = Tuning::new(context.tuning_key());
    tuning.add(&found);
    let tuning: Tuning = tuning.to_string().parse().map_err(text)?;
    let winner = found.winner().ok_or("no winner")?.choice;
    plan_takes(&context.with_tuning(tuning).map_err(text)?, &problem, winner)
}

/// Plans of a context with a table take `choice`, say so, and are right.
fn plan_takes(context: &Context, problem: &Problem, choice: TileChoice) -> Result<(), String> {
    let plan = context.plan_blocking(problem, &PlanOptions::new()).map_err(text)?;
    if plan.tiles() != choice.tiles {
        return Err(format!("{choice} was measured:\n{plan}"));
    }
    if !plan.to_string().contains("measured to be the fastest here (f32, head_dim ") {
        return Err(format!("the plan does not say why:\n{plan}"));
    }
    match context.verdict(problem, &PlanOptions::new()) {
        Verdict::Runs(how) if how.contains(", measured") => {}
        other => return Err(format!("the verdict does not say why: {other}")),
    }
    let inputs = tensors(problem);
    let got = run(context, &plan, &inputs)?;
    let [q, k, v] = &inputs;
    hold(problem, &HostInputs::new(q, k, v), &got)
}

fn run(
    context: &Context,
    plan: &flashtile_wgpu::Plan,
    inputs: &[Vec<u8>; 3],
) -> Result<Vec<u8>, String> {
    let [q, k, v] = inputs.each_ref().map(|host| buffer(context, host, Usage::STORAGE));
    let out = buffer(context, &vec![0xFF; inputs[0].len()], Usage::STORAGE);
    plan.submit(&Args::new(&q, &k, &v, &out)).map_err(text)?;
    read(context, &out)
}

/// A judge that finds every result wrong but that of one shape: the planner's, or the second.
fn wrong_shapes(context: &Context) -> Result<(), String> {
    let problem = problem(1, 70, 70, 16)?;
    for right in [0, 1] {
        let mut n = 0;
        let found = tune(context, &problem, 2, &mut |_: &[u8]| {
            n += 1;
            if n - 1 == right { Ok(()) } else { Err("it is wrong".to_owned()) }
        })?;
        let wrong = |outcome: &Outcome| matches!(outcome, Outcome::Wrong(_));
        let count = found.shapes.iter().filter(|shape| wrong(&shape.outcome)).count();
        let choices = found.choices();
        let planned = |choice: &TileChoice| {
            found.shapes.iter().any(|shape| shape.planned && shape.choice == *choice)
        };
        let sound = match right {
            0 => choices.len() == 1 && planned(&choices[0]),
            // It is kept only if it is faster than the wrong one.
            _ => choices.len() <= 1 && !choices.iter().any(planned),
        };
        if n < 2 || count != n - 1 || !sound {
            return Err(format!("{n} runs, {count} wrong, {choices:?}: {:#?}", found.shapes));
        }
    }
    Ok(())
}

fn splits(context: &Context) -> Result<(), String> {
    let problem = problem(1, 1, 2100, 16)?;
    let [q, k, v] = tensors(&problem);
    let inputs = HostInputs::new(&q, &k, &v);
    let found = tune(context, &problem, 1, &mut |out: &[u8]| hold(&problem, &inputs, out))?;
    let tried: HashSet<_> =
        found.shapes.iter().map(|shape| shape.choice.key_split.to_string()).collect();
    let expected = ["auto", "off", "512", "1024", "2048"];
    if tried != expected.map(String::from).into() {
        return Err(format!("tried the splits {tried:?}"));
    }
    if found.shapes.iter().any(|s| matches!(s.outcome, Outcome::Wrong(_) | Outcome::Failed(_))) {
        return Err(format!("{:#?}", found.shapes));
    }
    Ok(())
}

/// A row has the same bits whatever the batch, with a table as without, and problems of other kinds
/// are planned as before.
fn table_and_batch(context: &Context) -> Result<(), String> {
    let (one, three) = (problem(1, 70, 300, 24)?, problem(3, 70, 300, 24)?);
    let planned = context.plan_blocking(&one, &PlanOptions::new()).map_err(text)?.tiles();
    let other = FLASH_TILES.into_iter().find(|&tiles| {
        let forced = PlanOptions::new().tiles(tiles);
        tiles != planned && context.verdict(&one, &forced).runs()
    });
    let tiles = other.ok_or("the device has one shape")?;
    let choice = TileChoice::new(tiles);
    let mut tuning = Tuning::new(context.tuning_key());
    tuning.insert(&ProblemKind::of(&one), [choice]);
    let tuned = context.with_tuning(tuning).map_err(text)?;
    plan_takes(&tuned, &one, choice)?;
    plan_takes(&tuned, &three, choice)?;

    let inputs = tensors(&three);
    let plans = [&one, &three].map(|p| tuned.plan_blocking(p, &PlanOptions::new()));
    let [alone, together] = plans;
    let first = inputs.clone().map(|bytes| bytes[..bytes.len() / 3].to_vec());
    let alone = run(&tuned, &alone.map_err(text)?, &first)?;
    let together = run(&tuned, &together.map_err(text)?, &inputs)?;
    if together[..alone.len()] != alone[..] {
        return Err("the batch changes the bits of a row".to_owned());
    }

    let wider = problem(1, 70, 300, 25)?;
    for (context, problem, options) in [
        (&tuned, &wider, PlanOptions::new()),
        (&tuned, &one, PlanOptions::new().tiles(planned)),
        (&tuned, &one, PlanOptions::new().kernel(KernelKind::Unfused)),
    ] {
        let plan = context.plan_blocking(problem, &options).map_err(text)?;
        if plan.to_string().contains("measured") || plan.tiles() == tiles {
            return Err(format!("the table does not speak for this:\n{plan}"));
        }
    }
    Ok(())
}

/// All kernels of the problems are there when it returns, with every kind of binding, and later
/// plans compile nothing.
fn ahead(context: &Context) -> Result<(), String> {
    let context = context.with_runtime_checks();
    let x = dense([2, 2, 70, 24]);
    let with = |mask| {
        let problem = Problem::builder(x, x, x).lse(true).kv_lens(true).mask(mask).build();
        problem.map_err(text)
    };
    let mask = |kind| Mask::contiguous(kind, &[70, 70]).map_err(text);
    let problems = [
        with(None)?,
        with(mask(MaskKind::Bool)?.into())?,
        with(mask(MaskKind::Additive(DType::F32))?.into())?,
        problem(1, 1, 3000, 24)?,
    ];
    for options in [PlanOptions::new(), PlanOptions::new().kernel(KernelKind::Unfused)] {
        let plans = context.compile_ahead_blocking(&problems, &options).map_err(text)?;
        let compiled = context.pipeline_count();
        for (problem, ahead) in problems.iter().zip(&plans) {
            let plan = context.plan_blocking(problem, &options).map_err(text)?;
            plan.warm_up_blocking().map_err(text)?;
            if plan.dispatches() != ahead.dispatches() || ahead.problem() != problem {
                return Err(format!("another plan was compiled ahead:\n{ahead}\n{plan}"));
            }
        }
        if compiled == 0 || context.pipeline_count() != compiled {
            return Err(format!("{compiled}, then {} pipelines", context.pipeline_count()));
        }
        let [q, k, v] = tensors(&problems[3]);
        let mut out = vec![0xFF; q.len()];
        let args = HostArgs::new(&q, &k, &v, &mut out);
        context.run_host_blocking(&plans[3], args).map_err(text)?;
        hold(&problems[3], &HostInputs::new(&q, &k, &v), &out)?;
    }
    Ok(())
}

/// The data of one cache is accepted by the next, and results are right with both.
fn pipeline_cache(context: &Context) -> Result<(), String> {
    let device = context.device();
    if context.pipeline_cache_data().is_some() {
        return Err("a context without a cache has data".to_owned());
    }
    if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return Ok(()); // only Vulkan has it
    }
    let problem = problem(1, 40, 70, 24)?;
    let [q, k, v] = tensors(&problem);
    let mut data: Option<Vec<u8>> = None;
    for _ in 0..2 {
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: false };
        // SAFETY: the data is what a cache of this very device returned, or none.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        let cached = context.with_pipeline_cache(cache);
        let plan = cached.plan_blocking(&problem, &PlanOptions::new()).map_err(text)?;
        let mut out = vec![0xFF; q.len()];
        let mut args = HostArgs::new(&q, &k, &v, &mut out);
        let uploaded = HostRun::upload_blocking(&plan, &args).map_err(text)?;
        uploaded.run_blocking().map_err(text)?;
        uploaded.download_blocking(&mut args).map_err(text)?;
        hold(&problem, &HostInputs::new(&q, &k, &v), &out)?;
        data = cached.pipeline_cache_data();
        if data.as_ref().is_none_or(Vec::is_empty) {
            return Err("the cache gives no data back".to_owned());
        }
    }
    Ok(())
}

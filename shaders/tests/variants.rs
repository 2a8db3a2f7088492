//! Checks variants without a GPU: all of them, except that of the unrolled ones every 13th is
//! enough. Plans choose variants at run time, so kernel source that only some drivers reject must
//! be found here.
//!
//! naga validates each of them with the capabilities of baseline WebGPU and translates it for every
//! graphics API. If FLASHTILE_SPIRV_VAL names `spirv-val`, that checks the SPIR-V too; CI requires
//! it.
#![allow(clippy::unwrap_used)]

use flashtile_core::{DType, MaskKind};
use flashtile_shaders::{Constants, Operation, Params, Slot, Tiles, Variant};
use flashtile_shaders::{LANE_TILES, UNIFORM_TILES};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

const CONSTANTS: Constants =
    Constants { softcap: true, dropout: true, by_four: false, folded: true };

/// The size of Metal's matrices.
const METAL_MATRIX: u32 = 8;

/// Parses the source, validates it with only the capabilities of core WebGPU (which include
/// unpack2x16float), with subgroups and matrices where the variant uses them, then sets the
/// overridable constants.
fn compile(variant: &Variant) -> Result<(naga::Module, ModuleInfo), String> {
    let source = variant.wgsl();
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if variant.tiles.uses_matrix_units() {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = capabilities;
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .map_err(|e| e.emit_to_string(&source))?;
    if variant.tiles.uses_subgroups() {
        capabilities |= Capabilities::SUBGROUP;
    }
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(&source))?;
    let constants =
        CONSTANTS.entries().map(|(name, value)| (name.to_string(), value)).into_iter().collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(
        &module,
        &info,
        Some((naga::ShaderStage::Compute, variant.entry_point())),
        &constants,
    )
    .map_err(|e| e.to_string())?;
    Ok((module.into_owned(), info.into_owned()))
}

/// The variants that are checked. Unrolled sources are twenty times as long as others, and those of
/// one tile shape differ in the same small functions, so a spread of them is enough: every shape,
/// storage type and mask occurs.
fn checked() -> Vec<Variant> {
    let unrolled = |variant: &Variant| variant.tiles.exact_width().is_some();
    let (long, short): (Vec<_>, Vec<_>) = Variant::all().partition(unrolled);
    short.into_iter().chain(long.into_iter().step_by(13)).collect()
}

#[test]
fn the_spread_of_unrolled_variants_has_every_shape() {
    let checked = checked();
    for tiles in UNIFORM_TILES.into_iter().chain(LANE_TILES) {
        for &dtype in DType::ALL {
            let found = checked.iter().any(|v| v.tiles == tiles && v.dtype == dtype);
            assert!(found, "{tiles:?} {dtype}");
        }
    }
}

fn failures(check: impl Fn(&Variant) -> Result<(), String>) {
    let all = checked();
    assert!(all.len() > 500, "only {} variants are checked", all.len());
    let failed: Vec<_> =
        all.iter().filter_map(|v| check(v).err().map(|e| format!("{v}: {e}"))).collect();
    assert!(failed.is_empty(), "{} of {} failed, first: {}", failed.len(), all.len(), failed[0]);
}

#[test]
fn variants_translate_for_every_graphics_api() {
    failures(|variant| {
        let (module, info) = compile(variant)?;
        let entry = variant.entry_point().to_string();
        let stage = naga::ShaderStage::Compute;
        naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None)
            .map_err(|e| format!("SPIR-V: {e}"))?;
        if let Tiles::Matrix(tiles) = variant.tiles
            && tiles.size != METAL_MATRIX
        {
            return Ok(()); // only Vulkan has matrices of this size
        }
        naga::back::msl::write_string(
            &module,
            &info,
            &naga::back::msl::Options {
                fake_missing_bindings: true,
                lang_version: (2, 4),
                ..Default::default()
            },
            &naga::back::msl::PipelineOptions {
                entry_point: Some((stage, entry.clone())),
                ..Default::default()
            },
        )
        .map_err(|e| format!("MSL: {e}"))?;
        // HLSL and GLSL ES have no cooperative matrices, and wgpu does not offer them there.
        if variant.tiles.uses_matrix_units() {
            return Ok(());
        }
        let options =
            naga::back::hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        let pipeline =
            naga::back::hlsl::PipelineOptions { entry_point: Some((stage, entry.clone())) };
        naga::back::hlsl::Writer::new(&mut String::new(), &options, &pipeline)
            .write(&module, &info, None)
            .map_err(|e| format!("HLSL: {e}"))?;
        // GLSL ES has no subgroup operations.
        if variant.tiles.uses_subgroups() {
            return Ok(());
        }
        naga::back::glsl::Writer::new(
            &mut String::new(),
            &module,
            &info,
            &naga::back::glsl::Options {
                version: naga::back::glsl::Version::new_gles(310),
                ..Default::default()
            },
            &naga::back::glsl::PipelineOptions {
                shader_stage: stage,
                entry_point: entry,
                multiview: None,
            },
            naga::proc::BoundsCheckPolicies::default(),
        )
        .and_then(|mut writer| writer.write())
        .map_err(|e| format!("GLSL: {e}"))?;
        Ok(())
    });
}

/// The planner's formula for workgroup memory gives what the source declares.
#[test]
fn workgroup_memory_is_what_the_plan_computes() {
    failures(|variant| {
        let (module, _) = compile(variant)?;
        let declared: u32 = module
            .global_variables
            .iter()
            .filter(|(_, var)| var.space == naga::AddressSpace::WorkGroup)
            .map(|(_, var)| module.types[var.ty].inner.size(module.to_ctx()))
            .sum();
        let tiles: Tiles = variant.tiles;
        if matches!(variant.operation, Operation::FlashForward | Operation::FlashSplit)
            && declared != tiles.flash_workgroup_bytes()
        {
            return Err(format!(
                "declares {declared} bytes, the plan computes {}",
                tiles.flash_workgroup_bytes()
            ));
        }
        Ok(())
    });
}

/// Work that starts last should be short, so every flash kernel takes the last tile of a head first:
/// under a causal mask it has the most keys. Conformance runs this order where it has the device.
#[test]
fn flash_kernels_take_the_longest_tiles_first() {
    let flash =
        |v: &Variant| matches!(v.operation, Operation::FlashForward | Operation::FlashSplit);
    let mut checked = 0;
    for variant in Variant::all().filter(|v| flash(v) && v.mask.is_none() && !v.kv_lens && !v.lse) {
        let source = variant.wgsl();
        let (_, entry) = source.split_once("@compute").unwrap();
        let calls = entry.matches("work_item(").count();
        let longest_first = entry.matches("work_item(longest_first(index), BR)").count();
        assert_eq!((calls, longest_first), (1, 1), "{variant}");
        checked += 1;
    }
    assert!(checked > 300, "only {checked} variants are checked");
}

/// WebGPU allows 8 storage buffers per stage. A variant lists exactly the bindings that its source
/// declares.
#[test]
fn bindings_fit_webgpu() {
    failures(|variant| {
        let (module, _) = compile(variant)?;
        let mut declared: Vec<_> = module
            .global_variables
            .iter()
            .filter_map(|(_, var)| var.binding.map(|b| b.binding))
            .collect();
        declared.sort_unstable();
        let listed: Vec<_> = variant.bindings().iter().map(|b| b.slot as u32).collect();
        if declared != listed {
            return Err(format!("declares bindings {declared:?}, lists {listed:?}"));
        }
        let storage = variant.bindings().iter().filter(|b| b.slot != Slot::Params).count();
        if storage > 8 {
            return Err(format!("{storage} storage buffers"));
        }
        Ok(())
    });
}

/// Both languages lay the parameters out in the same way: WGSL aligns vectors.
#[test]
fn parameters_have_the_same_offsets_in_both_languages() {
    let (module, _) = compile(&Variant::all().next().unwrap()).unwrap();
    let params = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).unwrap();
    let naga::TypeInner::Struct { members, span } = &params.1.inner else { panic!("no struct") };
    let offset =
        |name| members.iter().find(|m| m.name.as_deref() == Some(name)).unwrap().offset as usize;
    assert_eq!(*span as usize, size_of::<Params>());
    assert_eq!(offset("seed"), std::mem::offset_of!(Params, seed));
    assert_eq!(offset("head_dim_v"), std::mem::offset_of!(Params, head_dim_v));
}

#[test]
fn names_of_variants_are_unique() {
    let mut names: Vec<_> = Variant::all().map(|v| v.to_string()).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(
        Variant::all().any(|v| v.dtype == DType::BF16
            && v.mask == Some(MaskKind::Bool)
            && v.kv_lens
            && v.lse)
    );
}

/// Validates naga's SPIR-V with the validator that driver authors use. Sources differ little from
/// each other, so every seventh variant is enough. Cooperative matrices are younger than the
/// validators of many distributions, which reject their capability.
#[test]
fn spirv_val_agrees() {
    let required = std::env::var("FLASHTILE_REQUIRE_SPIRV_VAL").is_ok_and(|value| value == "1");
    let Ok(program) = std::env::var("FLASHTILE_SPIRV_VAL") else {
        assert!(!required, "FLASHTILE_SPIRV_VAL does not name spirv-val");
        eprintln!(
            "not checked: FLASHTILE_SPIRV_VAL does not name spirv-val (scripts/test fetches it)"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("variant.spv");
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    let mut validated = 0;
    let known = |variant: &Variant| !variant.tiles.uses_matrix_units();
    for variant in checked().into_iter().filter(known).step_by(7) {
        let (module, info) = compile(&variant).unwrap_or_else(|e| panic!("{variant}: {e}"));
        let words = naga::back::spv::write_vec(&module, &info, &options, None).unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(&file, bytes).unwrap();
        let output = std::process::Command::new(&program)
            .args(["--target-env", "vulkan1.1"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{variant}: {}", String::from_utf8_lossy(&output.stderr));
        validated += 1;
    }
    assert!(validated > 100);
}

//! Reads the statistics of each pipeline at the moment when wgpu creates it.
//!
//! wgpu calls Vulkan through tables of functions. This module gives it tables in which a few
//! functions are replaced:
//!
//! - `vkCreateDevice` also enables `VK_KHR_pipeline_executable_properties`, and
//!   `vkCreateComputePipelines` also asks the driver to keep what it knows of the pipeline. So a
//!   kernel reaches the driver exactly as it does in an application: the same SPIR-V, features and
//!   layouts.
//! - Nothing is executed. `vkQueueSubmit` only notes what it should signal, because a GPU that is
//!   not there never does, and an application that waits for it would conclude that it is lost.

use anyhow::{Context as _, Result};
use ash::{khr::pipeline_executable_properties as executable, vk};
use flashtile_wgpu::wgpu::{
    self,
    hal::{api::Vulkan, vulkan},
};
use std::{
    ffi::{CStr, c_char},
    mem::transmute,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// A pipeline that wgpu created, as the driver describes it.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The entry point.
    pub entry_point: String,
    /// Lanes of a subgroup.
    pub subgroup_size: u32,
    /// Names and values, as the driver gives them.
    pub statistics: Vec<(String, u64)>,
    /// Names and texts of the driver's internal representations. The last is the machine code.
    pub texts: Vec<(String, String)>,
}

impl Compiled {
    /// The value of the statistic called `name`.
    pub fn statistic(&self, name: &str) -> Option<u64> {
        self.statistics.iter().find(|(found, _)| found == name).map(|&(_, value)| value)
    }

    /// The machine code as text.
    pub fn listing(&self) -> Option<&str> {
        self.texts.last().map(|(_, text)| text.as_str())
    }
}

/// Asks no driver for statistics from now on. Devices that are already open keep asking.
pub fn disable() {
    DISABLED.store(true, Ordering::Release);
}

/// The pipelines created since the last call, in order.
pub fn take() -> Vec<Compiled> {
    std::mem::take(&mut *lock(&COMPILED))
}

/// The driver's own functions. The instance is never destroyed.
static DRIVER: OnceLock<ash::Instance> = OnceLock::new();
/// The functions of the device that was opened last.
static DEVICE: Mutex<Option<DeviceFunctions>> = Mutex::new(None);
static COMPILED: Mutex<Vec<Compiled>> = Mutex::new(Vec::new());
static DISABLED: AtomicBool = AtomicBool::new(false);
/// The largest value of wgpu's timeline semaphore that a submission should signal.
static FINISHED: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
struct DeviceFunctions {
    create_compute_pipelines: vk::PFN_vkCreateComputePipelines,
    /// `None` where the driver has no statistics.
    executables: Option<executable::Device>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn driver() -> &'static ash::Instance {
    DRIVER.get().expect("instance() sets it before anything can call these functions")
}

/// An instance whose devices capture their pipelines. One process measures one device.
///
/// # Errors
/// The machine has no Vulkan library, or has one that cannot be used.
pub fn instance() -> Result<wgpu::Instance> {
    let flags = wgpu::InstanceFlags::empty();
    // SAFETY: opening Vulkan's library has no preconditions.
    let entry = unsafe { ash::Entry::load() }.context("there is no Vulkan library")?;
    // SAFETY: the entry is valid.
    let version = unsafe { entry.try_enumerate_instance_version() }?.unwrap_or(vk::API_VERSION_1_0);
    let extensions = vulkan::Instance::desired_extensions(&entry, version, flags)?;
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    // The version that wgpu asks for.
    let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
    let info = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_extension_names(&names);
    // SAFETY: what the description refers to outlives the call.
    let real = unsafe { entry.create_instance(&info, None) }.context("no Vulkan instance")?;
    let replaced = ash::Instance::from_parts_1_3(
        real.handle(),
        ash::InstanceFnV1_0 { create_device, get_device_proc_addr, ..real.fp_v1_0().clone() },
        real.fp_v1_1().clone(),
        real.fp_v1_3().clone(),
    );
    // A second instance would be of the same library, so its functions are the same.
    let _ = DRIVER.set(real);
    // SAFETY: the instance was created from `entry` with these extensions and flags. The callback
    // keeps wgpu from destroying it.
    let instance = unsafe {
        vulkan::Instance::from_raw(
            entry,
            replaced,
            version,
            0,
            None,
            extensions,
            flags,
            wgpu::MemoryBudgetThresholds::default(),
            false,
            Some(Box::new(|| {})),
        )
    }?;
    // SAFETY: the instance is valid, and nothing else uses it.
    Ok(unsafe { wgpu::Instance::from_hal::<Vulkan>(instance) })
}

/// As the driver's function, with the extension.
unsafe extern "system" fn create_device(
    physical: vk::PhysicalDevice,
    info: *const vk::DeviceCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    device: *mut vk::Device,
) -> vk::Result {
    // SAFETY: the caller's description is valid during this call. The copy adds one extension and
    // one structure, both of which live until the call returns.
    unsafe {
        let available =
            driver().enumerate_device_extension_properties(physical).unwrap_or_default();
        let has_statistics =
            available.iter().any(|found| found.extension_name_as_c_str() == Ok(executable::NAME));
        let mut info = *info;
        let mut extensions: Vec<*const c_char> = match info.enabled_extension_count as usize {
            0 => Vec::new(),
            count => std::slice::from_raw_parts(info.pp_enabled_extension_names, count).to_vec(),
        };
        let mut feature = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        if has_statistics {
            extensions.push(executable::NAME.as_ptr());
            feature.p_next = info.p_next.cast_mut();
            info.p_next = (&raw const feature).cast();
        }
        let info = info.enabled_extension_names(&extensions);
        let result = (driver().fp_v1_0().create_device)(physical, &info, allocator, device);
        if result == vk::Result::SUCCESS {
            let functions = ash::Device::load(driver().fp_v1_0(), *device);
            *lock(&DEVICE) = Some(DeviceFunctions {
                create_compute_pipelines: functions.fp_v1_0().create_compute_pipelines,
                executables: has_statistics.then(|| executable::Device::new(driver(), &functions)),
            });
        }
        result
    }
}

/// As the driver's function, except for the names of those that are replaced.
unsafe extern "system" fn get_device_proc_addr(
    device: vk::Device,
    name: *const c_char,
) -> vk::PFN_vkVoidFunction {
    // SAFETY: Vulkan asks callers for a C string, and the caller casts what it gets to the type
    // that belongs to the name.
    unsafe {
        match CStr::from_ptr(name).to_bytes() {
            b"vkCreateComputePipelines" => {
                let function: vk::PFN_vkCreateComputePipelines = create_compute_pipelines;
                transmute::<vk::PFN_vkCreateComputePipelines, vk::PFN_vkVoidFunction>(function)
            }
            b"vkQueueSubmit" => {
                let function: vk::PFN_vkQueueSubmit = queue_submit;
                transmute::<vk::PFN_vkQueueSubmit, vk::PFN_vkVoidFunction>(function)
            }
            b"vkGetSemaphoreCounterValue" | b"vkGetSemaphoreCounterValueKHR" => {
                let function: vk::PFN_vkGetSemaphoreCounterValue = get_semaphore_counter_value;
                transmute::<vk::PFN_vkGetSemaphoreCounterValue, vk::PFN_vkVoidFunction>(function)
            }
            b"vkWaitSemaphores" | b"vkWaitSemaphoresKHR" => {
                let function: vk::PFN_vkWaitSemaphores = wait_semaphores;
                transmute::<vk::PFN_vkWaitSemaphores, vk::PFN_vkVoidFunction>(function)
            }
            _ => (driver().fp_v1_0().get_device_proc_addr)(device, name),
        }
    }
}

/// Counts the submissions as finished.
unsafe extern "system" fn queue_submit(
    _: vk::Queue,
    count: u32,
    submits: *const vk::SubmitInfo<'_>,
    _: vk::Fence,
) -> vk::Result {
    for n in 0..count as usize {
        // SAFETY: the caller passes `count` descriptions. Every structure of a chain starts with
        // its type and the next one.
        unsafe {
            let mut next = (*submits.add(n)).p_next.cast::<vk::BaseInStructure<'_>>();
            while let Some(structure) = next.as_ref() {
                if structure.s_type == vk::StructureType::TIMELINE_SEMAPHORE_SUBMIT_INFO {
                    let info = &*next.cast::<vk::TimelineSemaphoreSubmitInfo<'_>>();
                    for m in 0..info.signal_semaphore_value_count as usize {
                        let value = *info.p_signal_semaphore_values.add(m);
                        FINISHED.fetch_max(value, Ordering::AcqRel);
                    }
                }
                next = structure.p_next;
            }
        }
    }
    vk::Result::SUCCESS
}

unsafe extern "system" fn get_semaphore_counter_value(
    _: vk::Device,
    _: vk::Semaphore,
    value: *mut u64,
) -> vk::Result {
    // SAFETY: the caller passes room for one value.
    unsafe { *value = FINISHED.load(Ordering::Acquire) };
    vk::Result::SUCCESS
}

unsafe extern "system" fn wait_semaphores(
    _: vk::Device,
    _: *const vk::SemaphoreWaitInfo<'_>,
    _: u64,
) -> vk::Result {
    vk::Result::SUCCESS
}

/// As the driver's function. What the driver says of each pipeline is kept for [`take`].
unsafe extern "system" fn create_compute_pipelines(
    device: vk::Device,
    cache: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    pipelines: *mut vk::Pipeline,
) -> vk::Result {
    let Some(functions) = lock(&DEVICE).clone() else {
        return vk::Result::ERROR_DEVICE_LOST;
    };
    // SAFETY: the caller passes `count` descriptions and room for as many pipelines.
    unsafe {
        let mut infos = std::slice::from_raw_parts(infos, count as usize).to_vec();
        if functions.executables.is_some() {
            for info in &mut infos {
                info.flags |= vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                    | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            }
        }
        let create = functions.create_compute_pipelines;
        let result = create(device, cache, count, infos.as_ptr(), allocator, pipelines);
        if result == vk::Result::SUCCESS {
            for (info, &pipeline) in
                infos.iter().zip(std::slice::from_raw_parts(pipelines, count as usize))
            {
                let described = functions
                    .executables
                    .as_ref()
                    .map_or(Ok(Compiled::default()), |known| describe(known, pipeline));
                let Ok(mut compiled) = described else {
                    return vk::Result::ERROR_UNKNOWN;
                };
                compiled.entry_point =
                    CStr::from_ptr(info.stage.p_name).to_string_lossy().into_owned();
                lock(&COMPILED).push(compiled);
            }
        }
        result
    }
}

/// What the driver says of a pipeline.
///
/// # Safety
/// The pipeline belongs to the device of these functions and was created with both flags.
unsafe fn describe(
    executables: &executable::Device,
    pipeline: vk::Pipeline,
) -> Result<Compiled, vk::Result> {
    let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
    // SAFETY: as this function requires.
    let properties = unsafe { executables.get_pipeline_executable_properties(&info) }?;
    let mut compiled = Compiled::default();
    // A compute pipeline has one executable in all these drivers.
    for (n, property) in (0..).zip(&properties) {
        compiled.subgroup_size = property.subgroup_size;
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(n);
        // SAFETY: the executable was listed.
        let statistics = unsafe { executables.get_pipeline_executable_statistics(&info) }?;
        for statistic in &statistics {
            // SAFETY: the format says which member of the union is set.
            let value = unsafe {
                match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => statistic.value.b32.into(),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => {
                        u64::try_from(statistic.value.i64).unwrap_or(0)
                    }
                    vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => {
                        statistic.value.f64.round() as u64
                    }
                    _ => statistic.value.u64,
                }
            };
            compiled.statistics.push((text(&statistic.name), value));
        }
        // SAFETY: the executable was listed.
        compiled.texts.extend(unsafe { internal_representations(executables, &info) }?);
    }
    Ok(compiled)
}

/// Vulkan gives the sizes at the first call and the texts at the second.
///
/// # Safety
/// The executable exists.
unsafe fn internal_representations(
    executables: &executable::Device,
    info: &vk::PipelineExecutableInfoKHR<'_>,
) -> Result<Vec<(String, String)>, vk::Result> {
    let get = executables.fp().get_pipeline_executable_internal_representations_khr;
    let mut count = 0;
    // SAFETY: the driver fills in at most `count` structures, and at most `data_size` bytes where
    // each of them points.
    unsafe {
        get(executables.device(), info, &raw mut count, std::ptr::null_mut()).result()?;
        let empty = vk::PipelineExecutableInternalRepresentationKHR::default();
        let mut found = vec![empty; count as usize];
        get(executables.device(), info, &raw mut count, found.as_mut_ptr()).result()?;
        let mut bytes: Vec<Vec<u8>> = found.iter().map(|one| vec![0; one.data_size]).collect();
        for (one, bytes) in found.iter_mut().zip(&mut bytes) {
            one.p_data = bytes.as_mut_ptr().cast();
        }
        get(executables.device(), info, &raw mut count, found.as_mut_ptr()).result()?;
        let read = |(one, bytes): (&vk::PipelineExecutableInternalRepresentationKHR<'_>, _)| {
            let bytes: &Vec<u8> = bytes;
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            (text(&one.name), String::from_utf8_lossy(&bytes[..end]).into_owned())
        };
        Ok(found.iter().zip(&bytes).map(read).collect())
    }
}

/// The text of a fixed array that ends at the first zero.
fn text(characters: &[c_char]) -> String {
    let bytes: Vec<u8> =
        characters.iter().take_while(|&&c| c != 0).map(|&c| c.to_ne_bytes()[0]).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

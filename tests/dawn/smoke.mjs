// Prints the adapter that Dawn finds, and multiplies a few numbers on it. This shows that Node,
// Dawn and the Vulkan driver work together, before any attention is involved.
//
//     scripts/with-vulkan node tests/dawn/smoke.mjs [DAWN]
//
// DAWN is the folder where `tests/dawn/package.json` was installed (default: target/dawn).

import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const folder = path.resolve(process.argv[2] ?? process.env.FLASHTILE_DAWN ?? 'target/dawn');
const { create, globals } = await import(
    pathToFileURL(createRequire(path.join(folder, 'package.json')).resolve('webgpu')).href
);
Object.assign(globalThis, globals);

// Vulkan only: Dawn would otherwise also offer OpenGL ES.
const gpu = create(['backend=vulkan']);
const adapter = await gpu.requestAdapter();
if (!adapter) throw new Error('Dawn finds no Vulkan adapter');

const { vendor, architecture, device: name, description } = adapter.info;
console.log(`adapter: ${[vendor, architecture, name, description].filter(Boolean).join(', ')}`);
console.log(`subgroups: ${adapter.info.subgroupMinSize} to ${adapter.info.subgroupMaxSize}`);
console.log(`features: ${[...adapter.features].sort().join(' ')}`);
for (const limit of [
    'maxComputeWorkgroupStorageSize',
    'maxComputeInvocationsPerWorkgroup',
    'maxComputeWorkgroupsPerDimension',
    'maxStorageBufferBindingSize',
    'maxBufferSize',
    'maxStorageBuffersPerShaderStage',
]) {
    console.log(`${limit}: ${adapter.limits[limit]}`);
}

const half = adapter.features.has('shader-f16');
const device = await adapter.requestDevice({ requiredFeatures: half ? ['shader-f16'] : [] });
const module = device.createShaderModule({
    code: `${half ? 'enable f16;\nalias elem = f16;' : 'alias elem = f32;'}
        @group(0) @binding(0) var<storage, read_write> values: array<f32>;
        @compute @workgroup_size(64)
        fn double(@builtin(global_invocation_id) id: vec3<u32>) {
            values[id.x] = f32(elem(2) * elem(values[id.x]));
        }`,
});
for (const message of (await module.getCompilationInfo()).messages) console.log(message.message);
const compute = { module, entryPoint: 'double' };
const pipeline = await device.createComputePipelineAsync({ layout: 'auto', compute });

const values = Float32Array.from({ length: 64 }, (_, i) => i);
const usage = GPUBufferUsage;
const size = values.byteLength;
const storage = usage.STORAGE | usage.COPY_SRC | usage.COPY_DST;
const buffer = device.createBuffer({ size, usage: storage });
const result = device.createBuffer({ size, usage: usage.MAP_READ | usage.COPY_DST });
device.queue.writeBuffer(buffer, 0, values);
const encoder = device.createCommandEncoder();
const pass = encoder.beginComputePass();
pass.setPipeline(pipeline);
const layout = pipeline.getBindGroupLayout(0);
const entries = [{ binding: 0, resource: { buffer } }];
pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
pass.dispatchWorkgroups(1);
pass.end();
encoder.copyBufferToBuffer(buffer, 0, result, 0, size);
device.queue.submit([encoder.finish()]);
await result.mapAsync(GPUMapMode.READ);
const got = new Float32Array(result.getMappedRange().slice(0));
result.unmap();
device.destroy();

const wrong = got.findIndex((value, i) => value !== 2 * i);
if (wrong >= 0) throw new Error(`element ${wrong} is ${got[wrong]}, expected ${2 * wrong}`);
console.log(`computed in ${half ? 'f16' : 'f32'}: right`);

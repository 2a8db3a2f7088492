// Runs kernels on Dawn for `main.rs`. A request is one line of JSON on stdin, and its answer is one
// line of JSON on stdout.
//
// The first line of output is { adapter } when a device is open, or { absent } with the reason why
// there is none.
//
//     { compile: [KERNEL] }
//         -> { refused: [string] }, one for each kernel that Dawn does not accept
//     { buffers: { NAME: BUFFER }, dispatches: [KERNEL with { params, workgroups }] }
//         -> { buffers: { NAME: base64 } }, those that are read back
//     either
//         -> { error } if the request failed
//
//     KERNEL { name, wgsl, entryPoint, constants, bindings: [{ binding, type, buffer }] };
//            without constants, only its source is validated
//     BUFFER { bytes: base64, or size: number; read: whether it is read back }

import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const say = (answer) => process.stdout.write(JSON.stringify(answer) + '\n');

// The device that a page gets by default: default limits, no features.
async function open() {
    const folder = path.resolve(process.env.FLASHTILE_DAWN);
    const { create, globals } = await import(
        pathToFileURL(createRequire(path.join(folder, 'package.json')).resolve('webgpu')).href
    );
    Object.assign(globalThis, globals);
    // Vulkan only: Dawn would otherwise also offer OpenGL ES.
    const gpu = create(['backend=vulkan']);
    const adapter = await gpu.requestAdapter();
    if (!adapter) throw new Error('Dawn finds no Vulkan adapter');
    const name = adapter.info.description || adapter.info.device;
    // `gpu` keeps Dawn alive.
    return { gpu, name, device: await adapter.requestDevice() };
}

let dawn;
try {
    dawn = await open();
} catch (error) {
    say({ absent: error.message.split('\n')[0] });
    process.exit(0);
}
const { device } = dawn;
let lost;
device.lost.then(({ message }) => (lost = new Error(`the device is lost: ${message}`)));
say({ adapter: dawn.name });

const layouts = new Map();
const kernels = new Map();

function memo(map, key, make) {
    if (!map.has(key)) map.set(key, make());
    return map.get(key);
}

// Explicit layouts, as in the library, so that Dawn checks them against the declarations in the
// source.
function layoutOf({ bindings }) {
    const entries = [{ binding: 0, type: 'uniform' }, ...bindings].map(({ binding, type }) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type },
    }));
    return memo(layouts, JSON.stringify(entries), () => {
        const group = device.createBindGroupLayout({ entries });
        return { group, pipeline: device.createPipelineLayout({ bindGroupLayouts: [group] }) };
    });
}

// Warnings count as errors, because a browser would print them on the user's console.
async function moduleOf({ wgsl }) {
    const module = device.createShaderModule({ code: wgsl });
    const { messages } = await module.getCompilationInfo();
    if (messages.length > 0) {
        const lines = messages.map((m) => `${m.type} at ${m.lineNum}:${m.linePos}: ${m.message}`);
        throw new Error(lines.join('; '));
    }
    return module;
}

async function compile(kernel) {
    const module = await moduleOf(kernel);
    const { entryPoint, constants } = kernel;
    const layout = layoutOf(kernel).pipeline;
    const descriptor = { layout, compute: { module, entryPoint, constants } };
    return device.createComputePipelineAsync(descriptor);
}

async function compileAll({ compile: wanted }) {
    const refused = [];
    const all = wanted.map(async (kernel) => {
        try {
            await (kernel.constants ? compile(kernel) : moduleOf(kernel));
        } catch (error) {
            refused.push(`${kernel.name}: ${error.message}`);
        }
    });
    await waitFor(Promise.all(all));
    return { refused };
}

function createBuffer({ bytes, size }) {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    if (bytes === undefined) return device.createBuffer({ size, usage });
    const content = Buffer.from(bytes, 'base64');
    const buffer = device.createBuffer({ size: content.length, usage });
    device.queue.writeBuffer(buffer, 0, content);
    return buffer;
}

async function run({ buffers: descriptions, dispatches }) {
    const names = Object.keys(descriptions);
    const buffers = new Map(names.map((name) => [name, createBuffer(descriptions[name])]));
    const results = new Map();
    const scrap = [...buffers.values()];
    try {
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (const dispatch of dispatches) {
            const { wgsl, constants, bindings, params, workgroups } = dispatch;
            const key = JSON.stringify([wgsl, constants, bindings]);
            const words = Uint32Array.from(params);
            const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
            const uniform = device.createBuffer({ size: words.byteLength, usage });
            scrap.push(uniform);
            device.queue.writeBuffer(uniform, 0, words);
            pass.setPipeline(await memo(kernels, key, () => compile(dispatch)));
            const entries = [
                { binding: 0, resource: { buffer: uniform } },
                ...bindings.map(({ binding, buffer }) => ({
                    binding,
                    resource: { buffer: buffers.get(buffer) },
                })),
            ];
            const layout = layoutOf(dispatch).group;
            pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
            pass.dispatchWorkgroups(...workgroups);
        }
        pass.end();
        for (const name of names.filter((name) => descriptions[name].read)) {
            const { size } = buffers.get(name);
            const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
            const result = device.createBuffer({ size, usage });
            scrap.push(result);
            results.set(name, result);
            encoder.copyBufferToBuffer(buffers.get(name), 0, result, 0, size);
        }
        device.queue.submit([encoder.finish()]);
        const answer = {};
        for (const [name, result] of results) {
            await waitFor(result.mapAsync(GPUMapMode.READ));
            answer[name] = Buffer.from(result.getMappedRange()).toString('base64');
            result.unmap();
        }
        return { buffers: answer };
    } finally {
        for (const buffer of scrap) buffer.destroy();
    }
}

// While Dawn works, Node polls it without a pause and takes a core from the driver that does the
// work. A short sleep in every turn of the event loop frees the core.
async function waitFor(promise) {
    let pending = true;
    const settled = () => (pending = false);
    promise.then(settled, settled);
    const never = new Int32Array(new SharedArrayBuffer(4));
    while (pending) {
        Atomics.wait(never, 0, 0, 5);
        await new Promise(setImmediate);
    }
    return promise;
}

// Also reports the errors that Dawn does not throw.
async function watched(work) {
    const filters = ['validation', 'out-of-memory', 'internal'];
    for (const filter of filters) device.pushErrorScope(filter);
    const outcome = await work().catch((error) => ({ error: error.message }));
    for (const _ of filters) {
        const error = await device.popErrorScope();
        if (error && !outcome.error && !outcome.refused?.length) outcome.error = error.message;
    }
    if (lost) throw lost;
    return outcome;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    say(await watched(() => (request.compile ? compileAll(request) : run(request))));
}
// Otherwise Dawn's threads keep the process alive.
process.exit(0);

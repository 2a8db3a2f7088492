// Runs kernels on Dawn for `main.rs` beside it: a line of JSON on stdin is a request, a line of JSON on stdout its answer.
//
// The first line that this prints is { adapter } once a device is there, or { absent } with the reason why there is none.
//
//     { compile: [KERNEL] }               -> { refused: [string] }, one for each kernel that is not accepted
//     { buffers: { NAME: BUFFER }, dispatches: [KERNEL and { params, bindings with buffer, workgroups }] }
//                                         -> { buffers: { NAME: base64 } } of those to be read back
//     either                              -> { error } where the request could not be done
//
//     KERNEL { name, wgsl, entryPoint, constants, bindings: [{ binding, type, buffer }] }; without constants, only its text is looked at
//     BUFFER { bytes: base64, or size: number; read: whether it comes back }

import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const say = (answer) => process.stdout.write(JSON.stringify(answer) + '\n');

// A device as a page in a browser gets it that asks for nothing: default limits, no features.
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
    // Dawn lives as long as `gpu` does, so it is kept.
    return { gpu, name: adapter.info.description || adapter.info.device, device: await adapter.requestDevice() };
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

// Explicit, as the library's own: what is bound is checked against what the text declares.
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

// Refused for warnings too: a browser's console is the user's.
async function moduleOf({ wgsl }) {
    const module = device.createShaderModule({ code: wgsl });
    const { messages } = await module.getCompilationInfo();
    if (messages.length > 0) {
        throw new Error(messages.map((m) => `${m.type} at ${m.lineNum}:${m.linePos}: ${m.message}`).join('; '));
    }
    return module;
}

async function compile(kernel) {
    const module = await moduleOf(kernel);
    const { entryPoint, constants } = kernel;
    const layout = layoutOf(kernel).pipeline;
    return device.createComputePipelineAsync({ layout, compute: { module, entryPoint, constants } });
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
    await atRest(Promise.all(all));
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
                ...bindings.map(({ binding, buffer }) => ({ binding, resource: { buffer: buffers.get(buffer) } })),
            ];
            pass.setBindGroup(0, device.createBindGroup({ layout: layoutOf(dispatch).group, entries }));
            pass.dispatchWorkgroups(...workgroups);
        }
        pass.end();
        for (const name of names.filter((name) => descriptions[name].read)) {
            const { size } = buffers.get(name);
            const result = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
            scrap.push(result);
            results.set(name, result);
            encoder.copyBufferToBuffer(buffers.get(name), 0, result, 0, size);
        }
        device.queue.submit([encoder.finish()]);
        const answer = {};
        for (const [name, result] of results) {
            await atRest(result.mapAsync(GPUMapMode.READ));
            answer[name] = Buffer.from(result.getMappedRange()).toString('base64');
            result.unmap();
        }
        return { buffers: answer };
    } finally {
        for (const buffer of scrap) buffer.destroy();
    }
}

// While Dawn has work, Node asks it without pause whether it is done, and takes a core from the driver that does the work.
// A rest in every turn of the event loop leaves the core to it.
async function atRest(promise) {
    let pending = true;
    const settled = () => (pending = false);
    promise.then(settled, settled);
    const nobody = new Int32Array(new SharedArrayBuffer(4));
    while (pending) {
        Atomics.wait(nobody, 0, 0, 5);
        await new Promise(setImmediate);
    }
    return promise;
}

// What Dawn has to object to beyond what throws.
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
// Dawn's threads would keep the process alive.
process.exit(0);

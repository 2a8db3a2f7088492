// The same algorithm as flash_forward.wgsl on matrix units: cooperative matrices of M x M, f16
// operands, f32 sums. A strip of M queries belongs to LANES threads, which are one subgroup or
// several. Several subgroups of one strip compute the same matrices, so the results do not depend
// on the size of subgroups.
//
// Elements of a matrix cannot be read or written. Scores therefore pass through workgroup memory,
// where each thread reads BC / TPR of them, and so do the weights. O stays in matrices. It leaves
// them only to be rescaled, when the largest score of a row has grown by more than HEADROOM since
// m was set. Weights may exceed 1 until then.
//
// Weights are rounded once to f16, scaled by SHIFT, so that f16 keeps small ones. Sums on matrix
// units may truncate, so each is short and starts at zero; f32 units add it to the rest.
//
// Rust code repeats the blocks between `//for` and `//end`, and evaluates what follows a dollar
// sign. In kernels for software adapters `//roll` becomes a loop, because long programs take long
// to compile. A matrix must not be loaded beyond the end of a row or a tensor, so all operands are
// staged in workgroup memory, with zeros there.
const NO_BIAS: vec4<u32> = vec4<u32>(0u);

// In units of ln 2: 4. With SHIFT, the largest weight is 2^15, within f16.
const HEADROOM: f32 = 2.772588722239781;
const SHIFT: f32 = 2048.0;

// Bits of `flags`.
const V_DIRTY: u32 = 1u;   // V of an edge tile holds NaN or an infinity
const O_OUTGROWN: u32 = 2u; // some row of O must be rescaled

var<workgroup> kv_tile: array<f16, KV_TILE>;      // columns of Q; then K, [key][column], or V,
                                                  // [column][key]
var<workgroup> s_tile: array<f32, BR * S_PITCH>;  // S, [query][key], or BC columns of O
var<workgroup> p_tile: array<f16, BR * P_PITCH>;  // [query][key]
var<workgroup> row_part: array<f32, THREADS>;     // to reduce rows
var<workgroup> row_absent: array<u32, THREADS>;   // a bit for each of the thread's keys
var<workgroup> flags: atomic<u32>;

// Eight neighbours of a row.
struct Eight {
    low: vec4<f16>,
    high: vec4<f16>,
}

// Rounds to f16: to nearest, ties to even, because WGSL's conversion may round in either direction.
// Finite numbers beyond the range of f16 become its largest number.
fn to_f16(x: vec4<f32>) -> vec4<f16> {
    let bits = bitcast<vec4<u32>>(x);
    let exponents = vec4<u32>(0x7f800000u);
    let finite = (bits & exponents) != exponents;
    let last = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
    let nearest = bitcast<vec4<f32>>((bits + vec4<u32>(0xfffu) + last) & vec4<u32>(0xffffe000u));
    let inside = clamp(nearest, vec4<f32>(-65504.0), vec4<f32>(65504.0));
    return vec4<f16>(select(x, inside, finite));
}

// Loads Q[.., d_begin .. d_begin + QC], with zeros beyond the queries and beyond head_dim.
fn load_q_tile(item: Item, d_begin: u32, thread: u32) {
    let dense = q_is_dense(item.q_base);
    for (var block = thread; block < many(BR * (QC / 8u)); block += THREADS) {
        let r = block / (QC / 8u);
        let d = block % (QC / 8u) * 8u;
        var x = Eight();
        if (item.row_begin + r < part_row_end()) {
            x = load8_q(q_row(item, item.row_begin + r), d_begin + d, dense);
        }
        put8(r * Q_PITCH + d, x);
    }
}

// Loads K[j_begin .. j_begin + BC, ..], with zeros beyond the valid keys and beyond head_dim.
fn load_k_tile(item: Item, j_begin: u32, thread: u32) {
    let dense = k_is_dense(item.k_base);
    for (var block = thread; block < many(BC * (W / 8u)); block += THREADS) {
        let c = block / (W / 8u);
        let d = block % (W / 8u) * 8u;
        var x = Eight();
        if (j_begin + c < item.keys.y) {
            x = load8_k(k_row(item, j_begin + c), d, dense);
        }
        put8(c * K_PITCH + d, x);
    }
}

// Eight numbers in a row of kv_tile.
fn put8(at: u32, x: Eight) {
    kv_tile[at] = x.low.x;
    kv_tile[at + 1u] = x.low.y;
    kv_tile[at + 2u] = x.low.z;
    kv_tile[at + 3u] = x.low.w;
    kv_tile[at + 4u] = x.high.x;
    kv_tile[at + 5u] = x.high.y;
    kv_tile[at + 6u] = x.high.z;
    kv_tile[at + 7u] = x.high.w;
}

// Loads V[j_begin .. j_begin + BC, ..], transposed, with zeros beyond the valid keys and beyond
// head_dim_v. A thread loads two keys, which share a word of workgroup memory. Returns whether it
// loaded a NaN or an infinity in an edge tile.
fn load_v_tile(item: Item, j_begin: u32, edge: bool, thread: u32) -> bool {
    let dense = v_is_dense(item.v_base);
    var finite = true;
    for (var block = thread; block < many(BC / 2u * (W / 8u)); block += THREADS) {
        let c = block % (BC / 2u) * 2u;
        let d = block / (BC / 2u) * 8u;
        let j = j_begin + c;
        var x = Eight();
        var y = Eight();
        if (j < item.keys.y) {
            x = load8_v(v_row(item, j), d, dense);
        }
        if (j + 1u < item.keys.y) {
            y = load8_v(v_row(item, j + 1u), d, dense);
        }
        if (edge) {
            finite = finite && is_finite8(x) && is_finite8(y);
        }
        let at = d * V_PITCH + c;
        put2(at, x.low.x, y.low.x);
        put2(at + V_PITCH, x.low.y, y.low.y);
        put2(at + 2u * V_PITCH, x.low.z, y.low.z);
        put2(at + 3u * V_PITCH, x.low.w, y.low.w);
        put2(at + 4u * V_PITCH, x.high.x, y.high.x);
        put2(at + 5u * V_PITCH, x.high.y, y.high.y);
        put2(at + 6u * V_PITCH, x.high.z, y.high.z);
        put2(at + 7u * V_PITCH, x.high.w, y.high.w);
    }
    return !finite;
}

fn put2(at: u32, x: f16, y: f16) {
    kv_tile[at] = x;
    kv_tile[at + 1u] = y;
}

fn is_finite8(x: Eight) -> bool {
    return is_finite4(vec4<f32>(x.low)) && is_finite4(vec4<f32>(x.high));
}

// Four scores, or four numbers of O.
fn s4(at: u32) -> vec4<f32> {
    return vec4<f32>(s_tile[at], s_tile[at + 1u], s_tile[at + 2u], s_tile[at + 3u]);
}

fn put_s4(at: u32, x: vec4<f32>) {
    s_tile[at] = x.x;
    s_tile[at + 1u] = x.y;
    s_tile[at + 2u] = x.z;
    s_tile[at + 3u] = x.w;
}

fn put_p4(at: u32, p: vec4<f32>) {
    let x = vec4<f16>(p);
    p_tile[at] = x.x;
    p_tile[at + 1u] = x.y;
    p_tile[at + 2u] = x.z;
    p_tile[at + 3u] = x.w;
}

// One bit for each key that is absent.
fn absent_bits(absent: vec4<bool>) -> u32 {
    let bits = select(vec4<u32>(0u), vec4<u32>(1u, 2u, 4u, 8u), absent);
    return bits.x | bits.y | bits.z | bits.w;
}

// Adds what the keys that row r sees contribute to columns d .. d + 3 by NaN and infinities in V.
fn add_not_finite(sum: vec4<f32>, r: u32, d: u32) -> vec4<f32> {
    var total = sum;
    for (var c = 0u; c < params.rolled; c++) {
        let absent = row_absent[r * TPR + c / (BC / TPR)] >> (c % (BC / TPR));
        if ((absent & 1u) == 0u) {
            let at = d * V_PITCH + c;
            let v = vec4<f32>(
                f32(kv_tile[at]),
                f32(kv_tile[at + V_PITCH]),
                f32(kv_tile[at + 2u * V_PITCH]),
                f32(kv_tile[at + 3u * V_PITCH]),
            );
            let exponent = bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u);
            let p = f32(p_tile[r * P_PITCH + c]);
            total = select(total, fma(vec4<f32>(p), v, total), exponent == vec4<u32>(0x7f800000u));
        }
    }
    return total;
}

// Replaces NaN and infinities in V by zeros.
fn clean_v_tile(thread: u32) {
    for (var at = thread; at < params.rolled * (W * V_PITCH / BC); at += THREADS) {
        if ((bitcast<u32>(f32(kv_tile[at])) & 0x7f800000u) == 0x7f800000u) {
            kv_tile[at] = 0.0h;
        }
    }
}

@compute @workgroup_size(THREADS)
fn flash_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(longest_first(index), BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    let strip = thread / LANES * M; // the first query of the subgroup's strip, in the tile
    let r = thread / TPR;           // the thread's query, in the tile
    let part = thread % TPR * (BC / TPR); // its first key of S, and its first column of O
    let row = item.row_begin + r;
    let visible = visible_keys(item, row);
    let q_pitch = Q_PITCH; // bound by name, because naga 30 panics on a constant here
    let k_pitch = K_PITCH;
    let v_pitch = V_PITCH;
    let s_pitch = S_PITCH;
    let p_pitch = P_PITCH;
    let s_row = r * S_PITCH + part;

    var q: array<Left, W / M>; // the strip, M columns each
    //roll chunk in W/QC
    load_q_tile(item, $[chunk*QC], thread);
    workgroupBarrier();
    //roll d in QC/M
    q[$[chunk*QC/M+d]] = coopLoadT<Left>(&kv_tile[strip * Q_PITCH + $[d*M]], q_pitch);
    //end
    workgroupBarrier();
    //end

    var m = LOWEST;
    var l = 0.0; // of the thread's own keys; summed along the row at the end
    var o: array<Sum, W / M>; // the strip, M columns each
    //roll d in W/M
    o[$[d]] = Sum();
    //end

    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        if (thread == 0u) {
            atomicStore(&flags, 0u);
        }
        load_k_tile(item, j_begin, thread);
        workgroupBarrier();

        // S = Q K^T
        var s: array<Sum, BC / M>; // M keys each
        //for c in BC/M
        s[$[c]] = Sum();
        //end
        //roll h in W/M/2
        //for c in BC/M
        {
            let at = $[c*M] * K_PITCH + $[2*h*M];
            let k0 = coopLoad<Right>(&kv_tile[at], k_pitch);
            let k1 = coopLoad<Right>(&kv_tile[at + M], k_pitch);
            let sum = coopMultiplyAdd(q[$[2*h+1]], k1, coopMultiplyAdd(q[$[2*h]], k0, Sum()));
            s[$[c]] = s[$[c]] + sum;
        }
        //end
        //end
        //for c in BC/M
        {
            let at = strip * S_PITCH + $[c*M];
            coopStoreT(s[$[c]], &s_tile[at], s_pitch);
        }
        //end
        workgroupBarrier();

        // Masks, and the largest score of each row.
        let edge = HAS_MASK || DROPOUT || !tile_is_full(item, row_end, j_begin, j_begin + BC);
        if (load_v_tile(item, j_begin, edge, thread)) { // nothing reads K any more
            atomicOr(&flags, V_DIRTY);
        }
        let j = j_begin + part;
        var x: array<vec4<f32>, BC / TPR / 4u>; // the thread's own scores
        var absent: array<vec4<bool>, BC / TPR / 4u>;
        //for n in BC/TPR/4
        x[$[n]] = s4(s_row + $[4*n]) * params.scale;
        absent[$[n]] = vec4<bool>(false);
        //end
        if (edge) {
            //for n in BC/TPR/4
            {
                let bias = mask4(item, row, j + $[4*n]);
                absent[$[n]] = !allowed4(visible, j + $[4*n], bias);
                x[$[n]] = score4(x[$[n]], bias);
            }
            //end
        } else {
            //for n in BC/TPR/4
            x[$[n]] = score4(x[$[n]], NO_BIAS);
            //end
        }
        var top4 = vec4<f32>(LOWEST);
        //for n in BC/TPR/4
        top4 = max(top4, select(x[$[n]], vec4<f32>(LOWEST), absent[$[n]]));
        //end
        row_part[thread] = max(max(top4.x, top4.y), max(top4.z, top4.w));
        workgroupBarrier();

        // P = exp(S - m). Where a row has outgrown m, alpha rescales what it holds so far.
        var top = row_part[r * TPR];
        //for c in 1..TPR
        top = max(top, row_part[r * TPR + $[c]]);
        //end
        var alpha = 1.0;
        if (top - m > HEADROOM) {
            alpha = rescale(m, top);
            m = top;
            if (l > 0.0) {
                atomicOr(&flags, O_OUTGROWN);
            }
            l *= alpha;
        }
        let dirty = (atomicLoad(&flags) & V_DIRTY) != 0u;
        var tile_sum = vec4<f32>(0.0);
        var absent_keys = 0u;
        //for n in BC/TPR/4
        {
            var p = exp4(x[$[n]] - m) * SHIFT;
            p = select(p, vec4<f32>(0.0), absent[$[n]]);
            tile_sum += p;
            if (DROPOUT) {
                let dropped = !kept(item, row, j + $[4*n]);
                p = select(p, vec4<f32>(0.0), dropped);
                absent[$[n]] = absent[$[n]] | dropped;
            }
            put_p4(r * P_PITCH + part + $[4*n], p);
            if (dirty) {
                absent_keys |= absent_bits(absent[$[n]]) << $[4*n];
            }
        }
        //end
        l += (tile_sum.x + tile_sum.y) + (tile_sum.z + tile_sum.w);
        if (dirty) {
            row_absent[thread] = absent_keys;
        }
        workgroupBarrier();

        let todo = atomicLoad(&flags);
        if (todo != 0u) {
            //roll chunk in W/BC
            //for c in BC/M
            {
                let at = strip * S_PITCH + $[c*M];
                coopStoreT(o[$[chunk*BC/M+c]], &s_tile[at], s_pitch);
            }
            //end
            workgroupBarrier();
            for (var n = 0u; n < params.rolled / TPR; n += 4u) {
                var x = s4(s_row + n) * alpha;
                if ((todo & V_DIRTY) != 0u) {
                    x = add_not_finite(x, r, $[chunk*BC] + part + n);
                }
                put_s4(s_row + n, x);
            }
            workgroupBarrier();
            //for c in BC/M
            o[$[chunk*BC/M+c]] = coopLoadT<Sum>(&s_tile[strip * S_PITCH + $[c*M]], s_pitch);
            //end
            workgroupBarrier();
            //end
            if ((todo & V_DIRTY) != 0u) {
                clean_v_tile(thread);
                workgroupBarrier();
            }
        }

        // O = O + P V
        var p_left: array<Left, BC / M>;
        //for c in BC/M
        p_left[$[c]] = coopLoadT<Left>(&p_tile[strip * P_PITCH + $[c*M]], p_pitch);
        //end
        //roll d in W/M
        {
            var sum = Sum();
            //for c in BC/M
            let v${c} = coopLoad<Right>(&kv_tile[$[d*M] * V_PITCH + $[c*M]], v_pitch);
            sum = coopMultiplyAdd(p_left[$[c]], v${c}, sum);
            //end
            o[$[d]] = o[$[d]] + sum;
        }
        //end
        workgroupBarrier();
    }

    // O / l, and lse = m + ln l (of a chunk: O, m and l).
    row_part[thread] = l;
    workgroupBarrier();
    var sum = row_part[r * TPR];
    //for c in 1..TPR
    sum += row_part[r * TPR + $[c]];
    //end
    sum /= SHIFT; // a power of two: exact
    let stored = row_is_stored(item, row);
    let factor = row_factor(sum) / SHIFT;
    //roll chunk in W/BC
    //for c in BC/M
    {
        let at = strip * S_PITCH + $[c*M];
        coopStoreT(o[$[chunk*BC/M+c]], &s_tile[at], s_pitch);
    }
    //end
    workgroupBarrier();
    if (stored) {
        for (var n = 0u; n < params.rolled / TPR; n += 4u) {
            let d = $[chunk*BC] + part + n;
            if (d < params.head_dim_v) {
                store4_row(item, row, d, s4(s_row + n) * factor);
            }
        }
    }
    workgroupBarrier();
    //end
    if (part == 0u && stored) {
        store_sums(item, row, m, sum);
    }
}

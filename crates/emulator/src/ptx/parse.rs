//! Parses one kernel of the PTX that NVRTC writes. Anything that the kernels under test do not use
//! is an error that names it.

use super::instruction::{
    Address, Comparison, Function, Instruction, MatrixType, Operand, Operation, Program, Reg,
    Space, Type,
};
use std::collections::HashMap;

/// Parses the kernel `entry` of `ptx`.
pub(super) fn parse(ptx: &str, entry: &str) -> Result<Program, String> {
    let start = ptx
        .find(&format!(".entry {entry}("))
        .ok_or_else(|| format!("there is no entry {entry}"))?;
    let body = start + ptx[start..].find('{').ok_or("the entry has no body")?;
    let head = &ptx[start..body];
    let param_bytes = between(head, "[", "]")
        .and_then(|n| n.parse().ok())
        .ok_or("expected one parameter, an array of bytes")?;
    let mut parser = Parser { param: format!("{entry}_param_0"), ..Parser::default() };
    parser.scopes.push(HashMap::new());
    let mut line = 1 + ptx[..=body].matches('\n').count() as u32;
    let mut rest = &ptx[body + 1..];
    while !parser.scopes.is_empty() {
        let trimmed = rest.trim_start();
        line += rest[..rest.len() - trimmed.len()].matches('\n').count() as u32;
        rest = trimmed;
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.find('\n').map_or("", |end| &comment[end..]);
        } else if let Some(inner) = rest.strip_prefix('{') {
            parser.scopes.push(HashMap::new());
            rest = inner;
        } else if let Some(outer) = rest.strip_prefix('}') {
            parser.scopes.pop();
            rest = outer;
        } else {
            let end = rest.find([';', ':']).ok_or("the PTX ends within the kernel")?;
            let statement = rest[..end].trim();
            if rest.as_bytes()[end] == b':' {
                parser.labels.insert(statement.to_owned(), parser.instructions.len() as u32);
            } else {
                parser
                    .statement(statement, line)
                    .map_err(|why| format!("line {line}, `{statement}`: {why}"))?;
            }
            line += rest[..=end].matches('\n').count() as u32;
            rest = &rest[end + 1..];
        }
    }
    for (instruction, label) in parser.branches {
        let to = *parser.labels.get(&label).ok_or_else(|| format!("there is no label {label}"))?;
        parser.instructions[instruction].operation = Operation::Branch { to };
    }
    Ok(Program { instructions: parser.instructions, registers: parser.registers, param_bytes })
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let start = text.find(open)? + open.len();
    Some(&text[start..start + text[start..].find(close)?])
}

#[derive(Default)]
struct Parser {
    param: String,
    instructions: Vec<Instruction>,
    /// Registers by name, innermost scope last.
    scopes: Vec<HashMap<String, Reg>>,
    registers: u32,
    labels: HashMap<String, u32>,
    /// Branches whose labels are not resolved yet.
    branches: Vec<(usize, String)>,
}

impl Parser {
    fn statement(&mut self, statement: &str, line: u32) -> Result<(), String> {
        if let Some(declaration) = statement.strip_prefix(".reg") {
            return self.declare(declaration.trim());
        }
        if statement.starts_with(".pragma") {
            return Ok(());
        }
        let (guard, statement) = match statement.strip_prefix('@') {
            None => (None, statement),
            Some(guarded) => {
                let (guard, rest) = guarded
                    .split_once(char::is_whitespace)
                    .ok_or("a guard without an instruction")?;
                let wanted = !guard.starts_with('!');
                (Some((self.register(guard.trim_start_matches('!'))?, wanted)), rest.trim())
            }
        };
        let (name, operands) = statement.split_once(char::is_whitespace).unwrap_or((statement, ""));
        let operands = split(operands);
        let operation = self.operation(name, &operands)?;
        self.instructions.push(Instruction { guard, operation, line });
        Ok(())
    }

    /// `.b32 %r<12>` declares twelve registers, `.b16 h` one.
    fn declare(&mut self, declaration: &str) -> Result<(), String> {
        let (_, names) =
            declaration.split_once(char::is_whitespace).ok_or("a declaration without a name")?;
        for name in names.split(',').map(str::trim) {
            let names: Vec<String> = match name.split_once('<') {
                Some((stem, count)) => {
                    let count: u32 = count
                        .trim_end_matches('>')
                        .parse()
                        .map_err(|_| "a count that is not a number")?;
                    (0..count).map(|n| format!("{stem}{n}")).collect()
                }
                None => vec![name.to_owned()],
            };
            for name in names {
                let scope = self.scopes.last_mut().ok_or("a declaration outside the kernel")?;
                scope.insert(name, self.registers);
                self.registers += 1;
            }
        }
        Ok(())
    }

    fn register(&self, name: &str) -> Result<Reg, String> {
        let found = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        found.copied().ok_or_else(|| format!("`{name}` is not a register"))
    }

    fn operand(&self, text: &str) -> Result<Operand, String> {
        let bits = match text {
            "%tid.x" => return Ok(Operand::ThreadX),
            "%tid.y" => return Ok(Operand::ThreadY),
            "%ctaid.x" => return Ok(Operand::Block),
            // Each is the only symbol in its memory space, so its address is 0.
            "shared_bytes" => 0,
            _ if text == self.param => 0,
            _ if text.starts_with("0f") || text.starts_with("0F") => {
                u64::from_str_radix(&text[2..], 16)
                    .map_err(|_| format!("`{text}` is not a number"))?
            }
            _ => match text.parse::<i128>() {
                Ok(number) => number as u64,
                Err(_) => return Ok(Operand::Reg(self.register(text)?)),
            },
        };
        Ok(Operand::Bits(bits))
    }

    /// `[%rd1+16]` or `[name]`.
    fn address(&self, text: &str) -> Result<Address, String> {
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .ok_or("expected an address")?;
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => {
                (base, offset.trim().parse().map_err(|_| "an offset that is not a number")?)
            }
            None => (inner, 0),
        };
        Ok(Address { base: self.operand(base.trim())?, offset })
    }

    /// `{%r1, %r2}`, or one operand without braces.
    fn list(&self, text: &str) -> Result<Vec<Operand>, String> {
        listed(text).map(|operand| self.operand(operand)).collect()
    }

    fn registers(&self, text: &str) -> Result<Vec<Reg>, String> {
        listed(text).map(|name| self.register(name)).collect()
    }

    fn operation(&mut self, name: &str, operands: &[&str]) -> Result<Operation, String> {
        let parts: Vec<&str> = name.split('.').collect();
        let at = |n: usize| operands.get(n).copied().ok_or("too few operands");
        let value = |n: usize| self.operand(at(n)?);
        let to = || self.register(at(0)?);
        let last = || {
            parts
                .last()
                .and_then(|name| Type::parse(name))
                .ok_or_else(|| format!("`{name}` has no type"))
        };
        let unknown = || format!("the interpreter does not support `{name}`");
        let number = |n: usize| at(n)?.parse::<u32>().map_err(|_| "expected a number".to_owned());
        Ok(match parts[..] {
            ["bra", ..] => {
                self.branches.push((self.instructions.len(), at(0)?.to_owned()));
                // The label may follow later.
                Operation::Branch { to: 0 }
            }
            ["ret"] => Operation::Return,
            ["bar", "sync"] => Operation::Barrier { any: None },
            ["bar", "warp", "sync"] => Operation::WarpBarrier,
            ["bar", "red", "or", "pred"] => Operation::Barrier { any: Some((to()?, value(2)?)) },
            ["shfl", "sync", mode @ ("bfly" | "idx"), "b32"] => {
                let mut to = at(0)?.split('|').map(|name| self.register(name.trim()));
                let (to, found) = (to.next().ok_or("too few operands")??, to.next().transpose()?);
                Operation::Shuffle {
                    by_xor: mode == "bfly",
                    to,
                    found,
                    from: value(1)?,
                    lane: value(2)?,
                }
            }
            ["vote", "sync", "any", "pred"] => Operation::Any { to: to()?, from: value(1)? },
            ["cp", "async", "commit_group"] => Operation::CopyCommit,
            ["cp", "async", "wait_group"] => Operation::CopyWait { latest: number(0)? },
            ["cp", "async", "ca" | "cg", "shared", "global"] => {
                let size = number(2)?;
                // The bytes to read from global memory; zeros fill the rest.
                let bytes = if operands.len() > 3 { value(3)? } else { Operand::Bits(size.into()) };
                Operation::CopyAsync {
                    size,
                    to: self.address(at(0)?)?,
                    from: self.address(at(1)?)?,
                    bytes,
                }
            }
            ["ldmatrix", "sync", "aligned", "m8n8", "x4", ref rest @ ..]
                if matches!(rest, ["shared", "b16"] | ["trans", "shared", "b16"]) =>
            {
                let to =
                    self.registers(at(0)?)?.try_into().map_err(|_| "expected four registers")?;
                Operation::LoadMatrix {
                    transposed: rest[0] == "trans",
                    to,
                    from: self.address(at(1)?)?,
                }
            }
            [
                "mma",
                "sync",
                "aligned",
                shape @ ("m16n8k16" | "m16n8k8"),
                "row",
                "col",
                "f32",
                a,
                b,
                "f32",
            ] if a == b => {
                let depth = if shape == "m16n8k16" { 16 } else { 8 };
                let four = |_| "expected four registers";
                let (a_words, b_words) = (self.list(at(1)?)?, self.list(at(2)?)?);
                let of = MatrixType::parse(a).ok_or_else(unknown)?;
                // A warp holds 16 rows of A and 8 columns of B.
                let words = depth as usize / 2 / of.per_register();
                if (a_words.len(), 2 * b_words.len()) != (words, words) {
                    return Err(unknown());
                }
                Operation::MultiplyAdd {
                    depth,
                    of,
                    to: self.registers(at(0)?)?.try_into().map_err(four)?,
                    a: a_words,
                    b: b_words,
                    c: self.list(at(3)?)?.try_into().map_err(|_| four(Vec::new()))?,
                }
            }
            // These would have to extend the sign into a wider register.
            ["ld", .., "s8" | "s16"] => return Err(unknown()),
            ["ld", space, _] | ["ld", space, "v2" | "v4", _] => Operation::Load {
                space: space_of(space)?,
                of: last()?,
                to: self.registers(at(0)?)?,
                from: self.address(at(1)?)?,
            },
            ["st", space, _] | ["st", space, "v2" | "v4", _] => Operation::Store {
                space: space_of(space)?,
                of: last()?,
                to: self.address(at(0)?)?,
                from: self.list(at(1)?)?,
            },
            ["setp", comparison, _] => {
                let of = last()?;
                if of == Type::F16 {
                    return Err(unknown());
                }
                let (ordered, or_unordered) = match comparison.strip_suffix('u') {
                    Some(ordered) if of == Type::F32 => (ordered, true),
                    _ => (comparison, false),
                };
                let comparison = match ordered {
                    "eq" => Comparison::Equal,
                    "ne" => Comparison::NotEqual,
                    "lt" => Comparison::Less,
                    "le" => Comparison::LessEqual,
                    "gt" => Comparison::Greater,
                    "ge" => Comparison::GreaterEqual,
                    _ => return Err(unknown()),
                };
                Operation::Compare {
                    comparison,
                    or_unordered,
                    of,
                    to: to()?,
                    from: [value(1)?, value(2)?],
                }
            }
            ["selp", _] => {
                Operation::Select { to: to()?, from: [value(1)?, value(2)?], by: value(3)? }
            }
            ["bfi", "b32"] => Operation::InsertBits {
                to: to()?,
                from: [value(1)?, value(2)?],
                bits: [value(3)?, value(4)?],
            },
            ["mov", half] if operands.iter().any(|operand| operand.starts_with('{')) => {
                let half = match half {
                    "b32" => Type::U16,
                    "b64" => Type::U32,
                    _ => return Err(unknown()),
                };
                let two = "expected two halves";
                if at(0)?.starts_with('{') {
                    Operation::Unpack {
                        half,
                        to: self.registers(at(0)?)?.try_into().map_err(|_| two)?,
                        from: value(1)?,
                    }
                } else {
                    Operation::Pack {
                        half,
                        to: to()?,
                        from: self.list(at(1)?)?.try_into().map_err(|_| two)?,
                    }
                }
            }
            ["cvt", "rn", pair @ ("f16x2" | "bf16x2"), "f32"] => Operation::ConvertPair {
                bf16: pair == "bf16x2",
                to: to()?,
                from: [value(1)?, value(2)?],
            },
            ["cvt", to_type, from_type] | ["cvt", "rn", to_type, from_type] => {
                let of = |name| Type::parse(name).ok_or_else(unknown);
                Operation::Convert {
                    to_type: of(to_type)?,
                    from_type: of(from_type)?,
                    to: to()?,
                    from: value(1)?,
                }
            }
            ["cvta", "to", "global", "u64"] => {
                compute(Function::Move, Type::U64, to()?, &[value(1)?])
            }
            _ => {
                let function = function(&parts).ok_or_else(unknown)?;
                let from: Vec<Operand> =
                    (1..operands.len()).map(value).collect::<Result<_, _>>()?;
                compute(function, last()?, to()?, &from)
            }
        })
    }
}

/// The operands between braces, or one operand without braces.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    inner.split(',').map(str::trim)
}

fn compute(function: Function, of: Type, to: Reg, from: &[Operand]) -> Operation {
    let mut all = [Operand::Bits(0); 3];
    all[..from.len().min(3)].copy_from_slice(&from[..from.len().min(3)]);
    Operation::Compute { function, of, to, from: all }
}

/// The function that an instruction computes. All of them round as `.rn` says; only `ex2` may have
/// `.ftz` and `.approx`.
fn function(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["mov", _] => Function::Move,
        ["abs", _] => Function::Abs,
        ["neg", _] => Function::Neg,
        ["not", _] => Function::Not,
        ["ex2", "approx", "ftz", "f32"] => Function::Exp2,
        ["add", _] | ["add", "rn", "f32"] => Function::Add,
        ["sub", _] | ["sub", "rn", "f32"] => Function::Sub,
        ["mul", "lo", _] | ["mul", "f32"] | ["mul", "rn", "f32"] => Function::Mul,
        ["mul", "hi", _] => Function::MulHigh,
        ["mul", "wide", _] => Function::MulWide,
        ["div", _] | ["div", "rn", "f32"] => Function::Div,
        ["rem", _] => Function::Rem,
        ["min", _] => Function::Min,
        ["max", _] => Function::Max,
        ["and", _] => Function::And,
        ["or", _] => Function::Or,
        ["xor", _] => Function::Xor,
        ["shl", _] => Function::ShiftLeft,
        ["shr", _] => Function::ShiftRight,
        ["mad", "lo", _] | ["fma", "rn", "f32"] => Function::MulAdd,
        ["bfe", _] => Function::ExtractBits,
        _ => return None,
    })
}

fn space_of(name: &str) -> Result<Space, String> {
    match name {
        "param" => Ok(Space::Param),
        "global" => Ok(Space::Global),
        "shared" => Ok(Space::Shared),
        _ => Err(format!("the interpreter does not support the space `{name}`")),
    }
}

/// Splits operands at commas, except within braces.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(move |c| {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|operand| !operand.is_empty()).collect()
}

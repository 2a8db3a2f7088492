//! The processes that run Dawn. Each is `run.mjs`, which answers one line of JSON at a time.

use serde_json::Value;
use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

/// The environment variable that names the folder with `node_modules/webgpu`.
const FOLDER: &str = "FLASHTILE_DAWN";

/// Dawn on this machine's Vulkan driver.
pub(crate) struct Dawn {
    folder: String,
    pub(crate) adapter: String,
    idle: Mutex<Vec<Process>>,
}

impl Dawn {
    /// Starts the first process, or returns the reason why it cannot.
    pub(crate) fn open() -> Result<Self, String> {
        let folder = env::var(FOLDER).map_err(|_| {
            format!("{FOLDER} names no folder with npm's webgpu: scripts/test fetches it")
        })?;
        let (process, adapter) = Process::start(&folder)?;
        Ok(Self { folder, adapter, idle: Mutex::new(vec![process]) })
    }

    /// A process for the caller alone, as long as the session lives. Processes are reused and keep
    /// the pipelines that they compiled.
    pub(crate) fn session(&self) -> Session<'_> {
        let process = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Session { dawn: self, process: Mutex::new(process) }
    }
}

/// One of the processes.
pub(crate) struct Session<'a> {
    pub(crate) dawn: &'a Dawn,
    /// None before the first request, and after a request that ended the process.
    process: Mutex<Option<Process>>,
}

impl Session<'_> {
    /// Sends a request and returns the answer.
    pub(crate) fn ask(&self, request: &Value) -> Result<Value, String> {
        let mut place = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = match place.take() {
            Some(process) => process,
            None => Process::start(&self.dawn.folder)?.0,
        };
        process.write(request)?;
        let answer = process.read()?;
        *place = Some(process);
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.dawn.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(process);
    }
}

struct Process {
    node: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Collects the messages of Node and Dawn.
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts a process; also returns the name of its adapter.
    fn start(folder: &str) -> Result<(Self, String), String> {
        let mut node = Command::new("node")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dawn/run.mjs"))
            .env(FOLDER, folder)
            // Mesa's software driver spends seconds compiling kernels that run for milliseconds.
            // Without optimisation, compiling takes half as long.
            .env("GALLIVM_PERF", "nopt")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("Node does not start: {e}"))?;
        let requests = node.stdin.take().ok_or("Node has no stdin")?;
        let answers = BufReader::new(node.stdout.take().ok_or("Node has no stdout")?);
        let stderr = node.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // After an error, report what was read so far.
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let mut process = Self { node, requests, answers, stderr };
        let greeting = process.read()?;
        match (greeting["adapter"].as_str(), greeting["absent"].as_str()) {
            (Some(adapter), _) => Ok((process, adapter.to_owned())),
            (None, reason) => Err(reason.unwrap_or("Dawn does not start").to_owned()),
        }
    }

    fn write(&mut self, request: &Value) -> Result<(), String> {
        let line = format!("{request}\n");
        self.requests.write_all(line.as_bytes()).map_err(|_| self.last_words())
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(bytes) if bytes > 0 => {
                serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))
            }
            _ => Err(self.last_words()),
        }
    }

    /// Why the process ended.
    fn last_words(&mut self) -> String {
        let status = self.node.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let said = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        format!("Dawn's process ended ({status}): {}", said.trim())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // This fails only if the process has already ended.
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

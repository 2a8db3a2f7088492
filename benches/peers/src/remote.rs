//! The parent's side of a peer's process.

use crate::{
    case::{Case, numbers},
    peers::Kind,
};
use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{self, Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Environment variables that turn the drivers' caches of compiled shaders off: Mesa's and
/// NVIDIA's. With them, the time to the first result would depend on earlier runs.
const NO_CACHE: [(&str, &str); 2] =
    [("MESA_SHADER_CACHE_DISABLE", "true"), ("__GL_SHADER_DISK_CACHE", "0")];

/// How often a long wait shows that it is one.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A running peer. It is killed when this is dropped.
pub(crate) struct Remote {
    kind: Kind,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Remote {
    /// Starts the process.
    pub(crate) fn start(kind: Kind, case: Case) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--worker").arg(kind.to_string()).arg(case.to_string());
        Self::spawn(kind, command)
    }

    fn spawn(kind: Kind, mut command: Command) -> Result<Self> {
        for (name, value) in NO_CACHE {
            // A value of the user's own is kept.
            if env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let (sender, lines) = mpsc::channel();
        // A thread reads, because a pipe cannot be read with a time limit.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { kind, child, stdin, lines })
    }

    /// The name of the adapter that it opened.
    pub(crate) fn adapter(&mut self, limit: Duration) -> Result<String> {
        let answer = self.next("adapter", limit)?;
        Ok(answer.as_str().context("`adapter` is no text")?.to_owned())
    }

    /// Milliseconds to the first result.
    pub(crate) fn first_ms(&mut self, limit: Duration) -> Result<f64> {
        self.next("first_ms", limit)?.as_f64().context("`first_ms` is no number")
    }

    /// Runs `times` times: the milliseconds of one run, on average.
    pub(crate) fn run(&mut self, times: usize, limit: Duration) -> Result<f64> {
        self.say(&format!("run {times}"))?;
        let ms = self.next("ms", limit)?.as_f64().context("`ms` is no number")?;
        Ok(ms / times as f64)
    }

    /// The output of the last run.
    pub(crate) fn output(&mut self, limit: Duration) -> Result<Vec<f32>> {
        let name = format!("flashtile-peers-{}-{}", process::id(), self.kind);
        let path = env::temp_dir().join(name);
        self.say(&format!("output {}", path.display()))?;
        let read = self
            .answer(limit, |value| value.as_object().is_some_and(|o| o.is_empty()))
            .and_then(|_| Ok(fs::read(&path)?));
        // It is not there if the peer failed.
        let _ = fs::remove_file(&path);
        Ok(numbers(&read?))
    }

    fn say(&mut self, line: &str) -> Result<()> {
        // If its end is closed, the wait for the answer finds out why.
        let _ = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        Ok(())
    }

    /// The value of `key` in the next answer.
    fn next(&mut self, key: &str, limit: Duration) -> Result<Value> {
        let answer = self.answer(limit, |value| value.get(key).is_some())?;
        Ok(answer[key].clone())
    }

    /// The next answer that is `wanted`. Other lines are what libraries print.
    fn answer(&mut self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let line = match self.lines.recv_timeout(left.min(SIGN_OF_LIFE)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if left > SIGN_OF_LIFE => {
                    eprintln!("  {} works, {:.0} s", self.kind, start.elapsed().as_secs_f64());
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => bail!("no answer within {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("its process ended: {}", self.end()),
            };
            let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
            if let Some(why) = value.get("failed").and_then(Value::as_str) {
                return Err(anyhow!(why.to_owned()));
            }
            if wanted(&value) {
                return Ok(value);
            }
        }
    }

    fn end(&mut self) -> String {
        self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// A stand-in for a worker: a shell script.
    fn remote(script: &str) -> Remote {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Remote::spawn(Kind::Burn, command).expect("starts")
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn answers_are_found_among_other_lines() {
        let mut peer = remote(
            "echo '{\"adapter\":\"A GPU\"}'; echo noise; echo '[1]'; echo '{\"first_ms\":9.5}'
             read run times; echo \"{\\\"ms\\\":${times}0}\"
             read output path; printf '\\0\\0\\200\\077\\0\\0\\0\\100' >$path; echo '{}'",
        );
        assert_eq!(peer.adapter(LIMIT).expect("answers"), "A GPU");
        assert_eq!(peer.first_ms(LIMIT).expect("answers"), 9.5);
        assert_eq!(peer.run(4, LIMIT).expect("answers"), 10.0);
        assert_eq!(peer.output(LIMIT).expect("answers"), [1.0, 2.0]);
    }

    #[test]
    fn failures_say_why() {
        let wait =
            |script, limit| format!("{:#}", remote(script).first_ms(limit).expect_err("it fails"));
        assert_eq!(wait("echo '{\"failed\":\"no kernel\"}'; sleep 60", LIMIT), "no kernel");
        assert!(wait("exit 3", LIMIT).contains("exit status: 3"));
        assert!(wait("kill -9 $$", LIMIT).contains("signal: 9"));
        assert!(wait("sleep 60", Duration::from_millis(50)).contains("no answer within 50ms"));
    }
}

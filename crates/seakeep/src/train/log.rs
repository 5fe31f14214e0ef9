//! What a run writes while it runs: `metrics.jsonl` and TensorBoard event files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Writes each logged step.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: Option<(PathBuf, File)>,
}

impl MetricsLog {
    /// Opens `metrics.jsonl` in `output_dir`, keeping what it holds up to optimizer step `after` (0: starts empty),
    /// and, if asked, a new event file in `output_dir/runs`.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(output_dir: &Path, after: usize, tensorboard: bool) -> Result<Self> {
        let path = output_dir.join("metrics.jsonl");
        let old = match std::fs::read(&path) {
            _ if after == 0 => String::new(),
            // A line that is no text is no line of ours, as one that was torn.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let step = |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64());
        let kept: String = old
            .lines()
            .filter(|l| step(l).is_some_and(|s| s <= after as u64))
            .flat_map(|l| [l, "\n"])
            .collect();
        crate::formats::write_atomic(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        let events = if tensorboard { Some(open_events(&output_dir.join(RUNS))?) } else { None };
        Ok(MetricsLog { path, file, events })
    }

    /// Writes one line: `step`, `epoch`, then `values` in order. A value that is not finite becomes `null`.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&mut self, step: usize, epoch: f64, values: &[(String, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("epoch".into(), epoch.into());
        // A count is written as one.
        let number =
            |name: &str, value: f64| if name == "num_tokens" { (value as u64).into() } else { value.into() };
        line.extend(values.iter().map(|(name, value)| (name.clone(), number(name, *value))));
        let text = format!("{}\n", Value::Object(line));
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))?;
        if let Some((path, file)) = &mut self.events {
            let mut records = Vec::new();
            for (name, value) in values {
                records.extend(record(&scalar_event(step, &tag(name), *value as f32)));
            }
            file.write_all(&records).map_err(Error::io("write", &*path))?;
        }
        Ok(())
    }
}

/// Hugging Face's TensorBoard tags: `train/loss`, `eval/loss`.
fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

// TensorBoard's event files are records of protocol buffers with two fields each; the few lines below replace
// crates that bring a protobuf compiler or an image library along. Format: tensorflow/core/lib/io/record_writer.h
// and core/util/event.proto.

/// Removes the event files that earlier runs left in an output directory: TensorBoard would read them as one run.
///
/// # Errors
/// The file system's.
pub fn remove_events(output_dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(output_dir.join(RUNS)).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(EVENTS) && n.contains(OURS)) {
            std::fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Where event files are, and what their names begin with and contain.
const RUNS: &str = "runs";
const EVENTS: &str = "events.out.tfevents.";
const OURS: &str = ".seakeep.";

fn open_events(directory: &Path) -> Result<(PathBuf, File)> {
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let path = directory.join(format!("{EVENTS}{}{OURS}{}", seconds() as u64, std::process::id()));
    let mut file = File::create(&path).map_err(Error::io("create", &path))?;
    let version = [field(1, 1), seconds().to_le_bytes().to_vec(), bytes(3, b"brain.Event:2")].concat();
    file.write_all(&record(&version)).map_err(Error::io("write", &path))?;
    Ok((path, file))
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A field's key: number and wire type (0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes).
fn field(number: u64, wire_type: u64) -> Vec<u8> {
    varint(number << 3 | wire_type)
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    [field(number, 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn scalar_event(step: usize, tag: &str, value: f32) -> Vec<u8> {
    let scalar = [bytes(1, tag.as_bytes()), field(2, 5), value.to_le_bytes().to_vec()].concat();
    let time = [field(1, 1), seconds().to_le_bytes().to_vec()].concat();
    [time, field(2, 0), varint(step as u64), bytes(5, &bytes(1, &scalar))].concat()
}

/// Length, its checksum, content, its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), content, &masked(content)].concat()
}

fn masked(data: &[u8]) -> [u8; 4] {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: records are short.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in data {
        crc ^= byte as u32;
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn events_have_the_bytes_of_the_format() {
        let event = scalar_event(300, "a", 1.5);
        assert_eq!(event[0], 0x09);
        assert_eq!(event[9..], [0x10, 0xac, 0x02, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f]);
        assert_eq!(record(&event).len(), event.len() + 16);
    }

    #[test]
    fn resuming_keeps_the_lines_before_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(dir.path(), 0, false).unwrap();
        for step in 1..=4 {
            log.write(step, 0.5, &[("loss".into(), f64::NAN)]).unwrap();
        }
        MetricsLog::open(dir.path(), 2, true).unwrap().write(3, 1.0, &[("loss".into(), 0.25)]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], r#"{"step":1,"epoch":0.5,"loss":null}"#);
        assert_eq!(lines[2], r#"{"step":3,"epoch":1.0,"loss":0.25}"#);
        assert_eq!(std::fs::read_dir(dir.path().join("runs")).unwrap().count(), 1);

        // A line that was torn, and is not even text, takes none of the others with it.
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, [text.as_bytes(), b"{\"step\":\xff\n"].concat()).unwrap();
        MetricsLog::open(dir.path(), 9, false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(MetricsLog::open(dir.path(), 9, false).is_err(), "what cannot be read is not replaced");
    }
}

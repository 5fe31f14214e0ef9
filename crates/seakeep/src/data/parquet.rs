//! Parquet rows as JSON, through the `parquet` crate's row interface: nested message lists come out as
//! lists of objects, and nothing of Arrow is compiled in.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

use super::read::{RawRow, Take};
use crate::error::{Error, Result};
use crate::formats::guard::guarded;

/// A row as the reader gives it.
pub(super) type ParquetRow = Row;

fn malformed(file: &Path) -> impl Fn(parquet::errors::ParquetError) -> Error {
    move |e| {
        Error::format(
            file,
            format!("not a Parquet file that can be read ({e}): was it cut short? copy it again"),
        )
    }
}

/// What is said where the library panics: it trusts what a damaged file says.
const DAMAGED: &str = "not a Parquet file that can be read: is it damaged? copy it again";

fn open(file: &Path) -> Result<SerializedFileReader<File>> {
    let handle = File::open(file).map_err(Error::io("open", file))?;
    guarded(file, DAMAGED, || SerializedFileReader::new(handle).map_err(malformed(file)))
}

/// How many rows `file` says that it has.
pub(super) fn count_rows(file: &Path) -> Result<usize> {
    let rows = open(file)?.metadata().file_metadata().num_rows();
    usize::try_from(rows).map_err(|_| Error::format(file, format!("says that it has {rows} rows")))
}

/// Hands on the rows of `file`, a row group at a time in memory.
pub(super) fn read_rows(file: &Path, take: Take) -> Result<()> {
    let reader = open(file)?;
    let mut rows = guarded(file, DAMAGED, || reader.get_row_iter(None).map_err(malformed(file)))?;
    for number in 1.. {
        let Some(row) = guarded(file, DAMAGED, || Ok(rows.next()))? else { break };
        let row =
            row.map_err(|e| Error::row(file, number, "", format!("cannot be read from Parquet: {e}")))?;
        if !take(number, RawRow::Parquet(row))? {
            break;
        }
    }
    Ok(())
}

/// A row's columns.
pub(super) fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => (*b).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => (*n).into(),
        Field::Long(n) | Field::TimeMicros(n) | Field::TimestampMillis(n) | Field::TimestampMicros(n) => {
            (*n).into()
        }
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float16(x) => f64::from(x.to_f32()).into(),
        Field::Float(x) => f64::from(*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Decimal(_) => field.to_string().into(),
        Field::Str(text) => text.as_str().into(),
        // Strings without the UTF-8 annotation come as bytes; some writers leave it out.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            // Something else, such as an image; whoever takes the column for a text is told.
            Err(_) => json!({ "bytes that are no UTF-8 text": bytes.data().len() }),
        },
        Field::Group(row) => {
            row.get_column_iter().map(|(name, f)| (name.clone(), value(f))).collect::<Map<_, _>>().into()
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect::<Vec<_>>().into(),
        Field::MapInternal(map) => {
            let key = |k: &Field| match value(k) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.entries().iter().map(|(k, v)| (key(k), value(v))).collect::<Map<_, _>>().into()
        }
        // The enum may grow; what is not known is shown as text and cannot be a column we need.
        #[allow(unreachable_patterns)]
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_a_text_only_if_they_are_one() {
        let of = |bytes: &[u8]| value(&Field::Bytes(bytes.to_vec().into()));
        assert_eq!(of("schön".as_bytes()), json!("schön"));
        assert_eq!(of(b"ab\xff"), json!({ "bytes that are no UTF-8 text": 3 }));
    }
}

//! Parquet files. Their types are those that DuckDB, pandas and ClickHouse read without a hint: moments are timestamps in
//! milliseconds, UTC; ids are text, because pandas shows a UUID of 16 bytes as bytes, and Umami's own exports and URLs have
//! ids as text, too.

use std::io;
use std::sync::Arc;

use dashi_domain::position::LogId;
use dashi_domain::record::Record;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::columns::{Columns, TEXTS};
use super::{Compression, Sink};

/// Rows of one row group, at most; it is in memory until it is full.
const ROWS_MAX: usize = 100_000;

/// Bytes of values of one row group; it is full when it has as many.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Rows of one file.
pub(super) struct ParquetFile {
    writer: SerializedFileWriter<Sink>,
    rows: Rows,
}

/// Rows of a row group that is not written yet, by column.
struct Rows {
    bytes: usize,
    partition: Vec<i32>,
    offset: Vec<i64>,
    appended_at: Vec<i64>,
    received_at: Optional<i64>,
    created_at: Optional<i64>,
    texts: [Optional<ByteArray>; TEXTS.len()],
    record: Optional<ByteArray>,
    record_bytes: Optional<ByteArray>,
    error: Optional<ByteArray>,
}

/// A column of values that may be absent.
struct Optional<T> {
    values: Vec<T>,
    /// 1 for a row that has a value, 0 for one that has none.
    levels: Vec<i16>,
}

impl<T> Default for Optional<T> {
    fn default() -> Self {
        Self { values: Vec::new(), levels: Vec::new() }
    }
}

impl<T> Optional<T> {
    fn push(&mut self, value: Option<T>) {
        self.levels.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

/// The schema of the files.
fn schema() -> String {
    let texts: String = TEXTS.iter().map(|(name, _)| format!("optional binary {name} (STRING);\n")).collect();
    format!(
        "message dashi_record {{
            required int32 partition;
            required int64 offset;
            required int64 appended_at (TIMESTAMP(MILLIS,true));
            optional int64 received_at (TIMESTAMP(MILLIS,true));
            optional int64 created_at (TIMESTAMP(MILLIS,true));
            {texts}
            optional binary record (STRING);
            optional binary record_bytes;
            optional binary error (STRING);
        }}"
    )
}

impl ParquetFile {
    pub(super) fn new(sink: Sink, compression: Compression, log: &LogId) -> io::Result<Self> {
        let schema = Arc::new(parse_message_type(&schema()).map_err(io::Error::other)?);
        let codec = match compression {
            Compression::Plain => Codec::UNCOMPRESSED,
            Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
            Compression::Gzip => {
                return Err(io::Error::other("Parquet files are not compressed by gzip here"));
            }
        };
        let metadata = vec![KeyValue::new("dashi.log".to_owned(), log.to_string())];
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_created_by(concat!("dashi ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(metadata))
            .build();
        let writer =
            SerializedFileWriter::new(sink, schema, Arc::new(properties)).map_err(io::Error::other)?;
        Ok(Self { writer, rows: Rows::new() })
    }

    pub(super) fn write(
        &mut self,
        record: &Record,
        columns: &Columns<'_>,
        error: Option<String>,
    ) -> io::Result<()> {
        self.rows.push(record, columns, error);
        if self.rows.partition.len() >= ROWS_MAX || self.rows.bytes >= BYTES_MAX {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Sink> {
        if !self.rows.partition.is_empty() {
            self.flush()?;
        }
        self.writer.into_inner().map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        let rows = std::mem::replace(&mut self.rows, Rows::new());
        let mut group = self.writer.next_row_group().map_err(io::Error::other)?;
        rows.write(&mut group).map_err(io::Error::other)?;
        group.close().map_err(io::Error::other)?;
        Ok(())
    }
}

impl Rows {
    fn new() -> Self {
        Self {
            bytes: 0,
            partition: Vec::new(),
            offset: Vec::new(),
            appended_at: Vec::new(),
            received_at: Optional::default(),
            created_at: Optional::default(),
            texts: std::array::from_fn(|_| Optional::default()),
            record: Optional::default(),
            record_bytes: Optional::default(),
            error: Optional::default(),
        }
    }

    fn push(&mut self, record: &Record, columns: &Columns<'_>, error: Option<String>) {
        self.bytes += 2 * record.value.len();
        // Partitions and offsets of a log are far below these types' limits.
        self.partition.push(record.partition.number() as i32);
        self.offset.push(record.offset.number() as i64);
        self.appended_at.push(record.appended_at_ms);
        self.received_at.push(columns.received_at_ms());
        self.created_at.push(columns.created_at_ms());
        for (column, (_, origin)) in self.texts.iter_mut().zip(TEXTS) {
            column.push(columns.text(origin).map(|text| ByteArray::from(text.into_owned().into_bytes())));
        }
        let is_text = std::str::from_utf8(&record.value).is_ok();
        let value = || ByteArray::from(record.value.clone());
        self.record.push(is_text.then(value));
        self.record_bytes.push((!is_text).then(value));
        self.error.push(error.map(|error| ByteArray::from(error.into_bytes())));
    }

    /// Writes the columns in the order of the schema.
    fn write(&self, group: &mut SerializedRowGroupWriter<'_, Sink>) -> parquet::errors::Result<()> {
        let mut column = group.next_column()?.ok_or_else(missing)?;
        column.typed::<Int32Type>().write_batch(&self.partition, None, None)?;
        column.close()?;
        for numbers in [&self.offset, &self.appended_at] {
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column.typed::<Int64Type>().write_batch(numbers, None, None)?;
            column.close()?;
        }
        for Optional { values, levels } in [&self.received_at, &self.created_at] {
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column.typed::<Int64Type>().write_batch(values, Some(levels), None)?;
            column.close()?;
        }
        let last = [&self.record, &self.record_bytes, &self.error];
        for Optional { values, levels } in self.texts.iter().chain(last) {
            let mut column = group.next_column()?.ok_or_else(missing)?;
            column.typed::<ByteArrayType>().write_batch(values, Some(levels), None)?;
            column.close()?;
        }
        Ok(())
    }
}

fn missing() -> parquet::errors::ParquetError {
    parquet::errors::ParquetError::General("the schema has fewer columns than the rows".to_owned())
}

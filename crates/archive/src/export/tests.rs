//! Parquet files, read back with the same crate's reader.

use std::fs::File;

use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
use ::parquet::record::{Field, Row};
use dashi_domain::position::LogId;

use super::parquet::ParquetFile;
use super::*;

const EVENT: &str = r#"{"v":1,"id":"00000000-0000-0000-0000-0000000000e1","at":1777623630123,
    "session":"00000000-0000-0000-0000-0000000000a1","visit":"00000000-0000-0000-0000-0000000000b1",
    "agent":"Mozilla/5.0","country":"GB","city":"Łódź","type":"event",
    "payload":{"website":"11111111-1111-4111-8111-111111111111","url":"/a?b=1","name":"buy","id":"someone",
    "timestamp":1777593600,"data":{"n":1.5,"s":"é","o":[1,null]}}}"#;

fn record(offset: u64, value: &[u8]) -> Record {
    Record {
        partition: Partition::new(2),
        offset: Offset::new(offset),
        appended_at_ms: 1_777_623_630_200,
        value: value.to_vec(),
    }
}

fn write(path: &Path, compression: Compression, records: &[Record]) {
    let sink = Sink::File(DurableFile::create(path).unwrap());
    let mut file = ParquetFile::new(sink, compression, &LogId::new("the log")).unwrap();
    for record in records {
        let error = LogRecord::decode(&record.value).err().map(|error| error.to_string());
        file.write(record, &Columns::of(&record.value), error).unwrap();
    }
    let Sink::File(file) = file.finish().unwrap() else { panic!("a file") };
    assert!(file.finish().unwrap() > 0);
}

fn read(path: &Path) -> Vec<Row> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let metadata = reader.metadata().file_metadata();
    assert_eq!(metadata.num_rows(), reader.get_row_iter(None).unwrap().count() as i64);
    let log = metadata.key_value_metadata().unwrap().iter().find(|pair| pair.key == "dashi.log");
    assert_eq!(log.unwrap().value.as_deref(), Some("the log"));
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect()
}

/// The value of a column as text.
fn cell(row: &Row, name: &str) -> String {
    let (_, field) = row.get_column_iter().find(|(column, _)| *column == name).unwrap();
    match field {
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => format!("{:?}", bytes.data()),
        Field::TimestampMillis(ms) => format!("at {ms}"),
        Field::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

#[test]
fn a_row_has_the_records_values_in_columns_of_their_types() {
    let directory = std::env::temp_dir().join(format!("dashi-export-{}", std::process::id()));
    for (compression, name) in [(Compression::Plain, "plain"), (Compression::Zstd, "zstd")] {
        let path = directory.join(format!("{name}.parquet"));
        let records = [
            record(7, EVENT.as_bytes()),
            record(9, b"\xff\x00 garbage"),
            record(10, br#"{"v":7,"id":"future","payload":3}"#),
        ];
        write(&path, compression, &records);
        let rows = read(&path);
        assert_eq!(rows.len(), 3);
        for (column, value) in [
            ("partition", "2"),
            ("offset", "7"),
            ("appended_at", "at 1777623630200"),
            ("received_at", "at 1777623630123"),
            ("created_at", "at 1777593600000"),
            ("event_id", "00000000-0000-0000-0000-0000000000e1"),
            ("website_id", "11111111-1111-4111-8111-111111111111"),
            ("session_id", "00000000-0000-0000-0000-0000000000a1"),
            ("visit_id", "00000000-0000-0000-0000-0000000000b1"),
            ("type", "event"),
            ("name", "buy"),
            ("url", "/a?b=1"),
            ("referrer", "null"),
            ("title", "null"),
            ("agent", "Mozilla/5.0"),
            ("country", "GB"),
            ("region", "null"),
            ("city", "Łódź"),
            ("distinct_id", "someone"),
            ("data", r#"{"n":1.5,"s":"é","o":[1,null]}"#),
            ("record", EVENT),
            ("record_bytes", "null"),
            ("error", "null"),
        ] {
            assert_eq!(cell(&rows[0], column), value, "{column}");
        }
        assert_eq!(cell(&rows[1], "record"), "null");
        assert_eq!(cell(&rows[1], "record_bytes"), format!("{:?}", b"\xff\x00 garbage"));
        assert!(cell(&rows[1], "error").contains("not a JSON object"), "{}", cell(&rows[1], "error"));
        assert_eq!((cell(&rows[2], "event_id"), cell(&rows[2], "url")), ("future".into(), "null".into()));
        assert!(cell(&rows[2], "error").contains("version 7"), "{}", cell(&rows[2], "error"));
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_file_has_row_groups_of_bounded_size_and_every_row_once() {
    let path = std::env::temp_dir().join(format!("dashi-groups-{}.parquet", std::process::id()));
    let records: Vec<_> = (0..250_001).map(|offset| record(offset, br#"{"v":1}"#)).collect();
    write(&path, Compression::Zstd, &records);
    let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
    let groups: Vec<_> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [100_000, 100_000, 50_001]);
    let offsets = reader.get_row_iter(None).unwrap().map(|row| cell(&row.unwrap(), "offset"));
    assert!(offsets.eq((0..250_001).map(|offset| offset.to_string())));
    std::fs::remove_file(&path).unwrap();
}

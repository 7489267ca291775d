//! NDJSON files.

use std::io::{self, BufWriter, Write as _};

use dashi_domain::record::Record;
use flate2::write::GzEncoder;

use super::{Compression, Sink};
use crate::line::write_record;

/// Lines, compressed or not.
pub(super) struct NdjsonFile {
    encoder: Encoder,
    line: Vec<u8>,
}

enum Encoder {
    Plain(BufWriter<Sink>),
    Gzip(GzEncoder<Sink>),
    Zstd(zstd::Encoder<'static, Sink>),
}

impl NdjsonFile {
    pub(super) fn new(sink: Sink, compression: Compression) -> io::Result<Self> {
        let encoder = match compression {
            Compression::Plain => Encoder::Plain(BufWriter::new(sink)),
            Compression::Gzip => Encoder::Gzip(GzEncoder::new(sink, flate2::Compression::default())),
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(sink, 0)?),
        };
        Ok(Self { encoder, line: Vec::new() })
    }

    pub(super) fn write(&mut self, record: &Record) -> io::Result<()> {
        self.line.clear();
        write_record(record, &mut self.line);
        match &mut self.encoder {
            Encoder::Plain(to) => to.write_all(&self.line),
            Encoder::Gzip(to) => to.write_all(&self.line),
            Encoder::Zstd(to) => to.write_all(&self.line),
        }
    }

    pub(super) fn finish(self) -> io::Result<Sink> {
        match self.encoder {
            Encoder::Plain(to) => to.into_inner().map_err(io::IntoInnerError::into_error),
            Encoder::Gzip(to) => to.finish(),
            Encoder::Zstd(to) => to.finish(),
        }
    }
}

//! The fields of a payload, from one table.

/// Makes [`Field`] of the fields and their names.
macro_rules! fields {
    ($($field:ident $name:literal),+ $(,)?) => {
        /// The fields of a payload, in the order in which Umami's schema checks them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field {
            $($field),+
        }

        impl Field {
            pub(super) const COUNT: usize = [$(Field::$field),+].len();

            /// Its key in a payload.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Field::$field => $name),+
                }
            }

            /// The field with this key.
            pub(super) fn of(name: &str) -> Option<Self> {
                Some(match name {
                    $($name => Field::$field,)+
                    _ => return None,
                })
            }
        }
    };
}

fields! {
    Website "website",
    Link "link",
    Pixel "pixel",
    Data "data",
    Hostname "hostname",
    Language "language",
    Referrer "referrer",
    Screen "screen",
    Title "title",
    Url "url",
    Name "name",
    Tag "tag",
    Ip "ip",
    UserAgent "userAgent",
    Timestamp "timestamp",
    Id "id",
    Browser "browser",
    Os "os",
    Device "device",
    Lcp "lcp",
    Inp "inp",
    Cls "cls",
    Fcp "fcp",
    Ttfb "ttfb",
    MessageId "messageId",
    BaseVersion "baseVersion",
}

//! Keys and values of a GGUF file.
//!
//! What it knows: the thirteen value types and how to look a key up. Getters convert between
//! number widths, because writers disagree about them; they give `None` for a missing key as for
//! a value of another kind. A caller to whom the difference matters uses [`Metadata::get`].

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7: one byte, 0 or 1.
    Bool(bool),
    /// Type 8: UTF-8.
    String(String),
    /// Type 9: elements of one type.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

/// An array: all elements are of one type, which an empty array has as well.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the vector of that type")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    /// Arrays in an array, each with a type of its own.
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one piece of memory. A vocabulary has 10^5 of them: one allocation each would
/// take most of the time of opening a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// Where each string ends in `text`; it begins where the one before it ends.
    ends: Vec<usize>,
}

impl Strings {
    pub(crate) fn with_capacity(count: usize) -> Strings {
        Strings {
            text: String::new(),
            ends: Vec::with_capacity(count),
        }
    }

    /// Appends a string.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        self.text.get(start..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = &self.text[start..end];
            start = end;
            string
        })
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Strings {
        let mut all = Strings::default();
        for string in strings {
            all.push(string.as_ref());
        }
        all
    }
}

impl Array {
    /// The id of the element type in the file.
    pub(super) fn kind(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::Array(_) => 9,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// How deep arrays are nested: 1 for an array of numbers or strings.
    pub(super) fn depth(&self) -> usize {
        match self {
            Array::Array(v) => 1 + v.iter().map(Array::depth).max().unwrap_or(0),
            _ => 1,
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as i64: any width of integer. `None` for other types, and if an element does
    /// not fit.
    pub fn ints(&self) -> Option<Vec<i64>> {
        fn widen<T: Copy + Into<i64>>(v: &[T]) -> Vec<i64> {
            v.iter().map(|&n| n.into()).collect()
        }
        Some(match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::I64(v) => v.clone(),
            Array::U64(v) => {
                let ints = v.iter().map(|&n| i64::try_from(n).ok());
                return ints.collect();
            }
            _ => return None,
        })
    }
}

impl Value {
    /// The id of the type in the file.
    pub(super) fn kind(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// A string.
    pub fn str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// Any integer that is not negative.
    pub fn u64(&self) -> Option<u64> {
        match *self {
            Value::U64(n) => Some(n),
            _ => self.i64().and_then(|n| u64::try_from(n).ok()),
        }
    }

    /// Any integer that fits.
    pub fn i64(&self) -> Option<i64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::I64(n) => Some(n),
            Value::U64(n) => i64::try_from(n).ok(),
            _ => None,
        }
    }

    /// Any number; an integer is rounded if it has more than 53 bits.
    pub fn f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            Value::U64(n) => Some(n as f64),
            _ => self.i64().map(|n| n as f64),
        }
    }

    /// A truth value.
    pub fn bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// An array.
    pub fn array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// The metadata of a file: keys in the order of the file, each key once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Positions in `entries`, sorted by key. A map would hold every key twice.
    by_key: Vec<usize>,
}

impl Metadata {
    /// No keys.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// `entries` must not have a key twice: the reader has seen to it.
    pub(crate) fn from_distinct(entries: Vec<(String, Value)>) -> Metadata {
        let mut by_key: Vec<usize> = (0..entries.len()).collect();
        by_key.sort_unstable_by(|&a, &b| entries[a].0.cmp(&entries[b].0));
        Metadata { entries, by_key }
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.by_key
            .binary_search_by(|&at| self.entries[at].0.as_str().cmp(key))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.find(key).ok()?;
        Some(&self.entries[self.by_key[found]].1)
    }

    /// Sets `key`, in its old place if it is there, else at the end.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let key = key.into();
        match self.find(&key) {
            Ok(found) => self.entries[self.by_key[found]].1 = value.into(),
            Err(place) => {
                self.by_key.insert(place, self.entries.len());
                self.entries.push((key, value.into()));
            }
        }
    }

    /// Removes the keys for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|(key, _)| keep(key));
        *self = Metadata::from_distinct(entries);
    }

    /// Keys and values, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The string at `key`.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.str()
    }

    /// The integer at `key`, of any width, if it is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.u64()
    }

    /// The integer at `key`, of any width.
    pub fn i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.i64()
    }

    /// The number at `key`, of any type.
    pub fn f64(&self, key: &str) -> Option<f64> {
        self.get(key)?.f64()
    }

    /// The truth value at `key`.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.bool()
    }

    /// The array at `key`.
    pub fn array(&self, key: &str) -> Option<&Array> {
        self.get(key)?.array()
    }

    /// The array of strings at `key`.
    pub fn strings(&self, key: &str) -> Option<&Strings> {
        match self.array(key)? {
            Array::String(strings) => Some(strings),
            _ => None,
        }
    }

    /// The array of f32 at `key`.
    pub fn f32s(&self, key: &str) -> Option<&[f32]> {
        match self.array(key)? {
            Array::F32(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// The array of integers at `key`, of any width.
    pub fn ints(&self, key: &str) -> Option<Vec<i64>> {
        self.array(key)?.ints()
    }
}

macro_rules! into_value {
    ($($from:ty => $variant:ident),+ $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Value {
                Value::$variant(value.into())
            }
        })+
    };
}

into_value! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, &str => String, String => String, Array => Array,
}

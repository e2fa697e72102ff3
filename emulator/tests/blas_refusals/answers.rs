//! What cublasLt 13.10.0 answered to calls that need no GPU, asked again of the emulator.
//!
//! `emulator/tests/data/cublaslt_answers_13.10.0.tsv` was written by calling NVIDIA's library on a machine without a GPU: a call a
//! line, then what came back. One line cannot be asked here: without a driver the library makes no handle, and the
//! emulator is one.

use std::ffi::{c_int, c_void};

use cuda_emulator::{Class, Emulator};
use cudarc::driver::CudaContext;
use libloading::Library;

use crate::seeded;

const ANSWERS: &str = include_str!("../data/cublaslt_answers_13.10.0.tsv");
const NEEDS_NO_DRIVER: &str = "create\t1, handle null";
/// What the recording wrote where a value could not be read.
const UNREAD: i64 = -99;

type Object = *mut c_void;
type Create = unsafe extern "C" fn(*mut Object) -> c_int;
type CreateDesc = unsafe extern "C" fn(*mut Object, c_int, c_int) -> c_int;
type CreateLayout = unsafe extern "C" fn(*mut Object, c_int, u64, u64, i64) -> c_int;
type Destroy = unsafe extern "C" fn(Object) -> c_int;
type Set = unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> c_int;
type Get = unsafe extern "C" fn(Object, c_int, *mut c_void, usize, *mut usize) -> c_int;

/// The library, by the addresses of its functions: attributes have numbers that no enumeration of the bindings has.
struct Lt(Library);

impl Lt {
    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the callers name functions of the type that they ask for.
        *unsafe { self.0.get::<F>(name.as_bytes()) }.unwrap()
    }

    /// Attributes of that kind of object.
    fn kind(&self, kind: &str, object: Object) -> Attributes {
        let name = match kind {
            "desc" => "MatmulDesc",
            "layout" => "MatrixLayout",
            _ => "MatmulPreference",
        };
        Attributes {
            set: self.function(&format!("cublasLt{name}SetAttribute")),
            get: self.function(&format!("cublasLt{name}GetAttribute")),
            object,
        }
    }

    fn desc(&self, compute: c_int, scale: c_int) -> (c_int, Object) {
        let mut desc = std::ptr::null_mut();
        let create: CreateDesc = self.function("cublasLtMatmulDescCreate");
        // SAFETY: the place is writable.
        (unsafe { create(&raw mut desc, compute, scale) }, desc)
    }

    fn layout(&self, dtype: c_int, rows: u64, cols: u64, ld: i64) -> (c_int, Object) {
        let mut layout = std::ptr::null_mut();
        let create: CreateLayout = self.function("cublasLtMatrixLayoutCreate");
        // SAFETY: the place is writable.
        (unsafe { create(&raw mut layout, dtype, rows, cols, ld) }, layout)
    }

    fn destroy(&self, kind: &str, object: Object) -> c_int {
        let name = match kind {
            "handle" => "cublasLtDestroy",
            "desc" => "cublasLtMatmulDescDestroy",
            "layout" => "cublasLtMatrixLayoutDestroy",
            _ => "cublasLtMatmulPreferenceDestroy",
        };
        // SAFETY: null, or an object of that kind that is destroyed once.
        unsafe { self.function::<Destroy>(name)(object) }
    }
}

/// The attributes of one object.
struct Attributes {
    set: Set,
    get: Get,
    object: Object,
}

impl Attributes {
    fn set(&self, attribute: c_int, value: i64, bytes: usize) -> c_int {
        // Room for twice the bytes of the widest attribute.
        let value = i128::from(value).to_le_bytes();
        // SAFETY: the value holds `bytes` bytes.
        unsafe { (self.set)(self.object, attribute, value.as_ptr().cast(), bytes) }
    }

    fn get(&self, attribute: c_int, bytes: usize) -> (c_int, i64) {
        let (mut value, mut written) = ([0_u8; 8], 0);
        // SAFETY: the value has room for `bytes` bytes.
        let status = unsafe {
            (self.get)(self.object, attribute, value.as_mut_ptr().cast(), bytes, &raw mut written)
        };
        let unused = 64 - 8 * bytes as u32;
        (status, i64::from_le_bytes(value) << unused >> unused)
    }

    /// The bytes that an attribute has, by the library's own word.
    fn size(&self, attribute: c_int) -> usize {
        let mut written = 0;
        // SAFETY: nothing is read or written but the size.
        let status = unsafe {
            (self.get)(self.object, attribute, std::ptr::null_mut(), 0, &raw mut written)
        };
        if status == 0 { written } else { 0 }
    }

    /// `4 bytes, get 0, default 68, set back 0, one byte less 7, twice the bytes 7`
    fn described(&self, attribute: c_int) -> String {
        let bytes = self.size(attribute);
        if bytes == 0 {
            return "unknown".into();
        }
        let (got, default) = self.get(attribute, bytes);
        let less = if bytes == 1 { -1 } else { self.set(attribute, default, bytes - 1) };
        let back = self.set(attribute, default, bytes);
        let twice = self.set(attribute, default, 2 * bytes);
        format!(
            "{bytes} bytes, get {got}, default {default}, set back {back}, one byte less {less}, twice the bytes {twice}"
        )
    }

    /// `0, then 4`
    fn set_and_read(&self, attribute: c_int, value: i64, bytes: usize) -> String {
        let status = self.set(attribute, value, bytes);
        let read = if status == 0 { self.get(attribute, bytes).1 } else { UNREAD };
        format!("{status}, then {read}")
    }
}

/// Asks one line of the recording.
fn ask(lt: &Lt, objects: [Object; 3], call: &str) -> String {
    let [desc, layout, preference] = objects;
    let attributes = |kind: &str| {
        let object = match kind {
            "desc" => desc,
            "layout" => layout,
            _ => preference,
        };
        lt.kind(kind, object)
    };
    let words: Vec<&str> = call.split(' ').collect();
    let number = |word: &str| word.parse::<i64>().unwrap();
    match words[..] {
        // SAFETY: these take nothing and return a number.
        ["version"] => unsafe {
            lt.function::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion")().to_string()
        },
        // SAFETY: as above.
        ["cudart"] => unsafe {
            lt.function::<unsafe extern "C" fn() -> usize>("cublasLtGetCudartVersion")().to_string()
        },
        // SAFETY: null is what the line is about.
        ["create,", "null"] => unsafe {
            lt.function::<Create>("cublasLtCreate")(std::ptr::null_mut()).to_string()
        },
        ["desc", "compute", compute, "scale", scale] => {
            let (status, made) = lt.desc(number(compute) as c_int, number(scale) as c_int);
            assert_eq!(lt.destroy("desc", made), 0);
            status.to_string()
        }
        ["desc", "set,", "null", "desc"] => {
            lt.kind("desc", std::ptr::null_mut()).set(3, 0, 4).to_string()
        }
        // SAFETY: null is what the line is about.
        ["desc", "set,", "null", "value"] => unsafe {
            (attributes("desc").set)(desc, 3, std::ptr::null(), 4).to_string()
        },
        [kind @ ("desc" | "layout" | "preference"), "attribute", attribute] => {
            attributes(kind).described(number(attribute) as c_int)
        }
        ["layout", ..] => {
            let (dtype, rows, cols, ld) = match &words[1..] {
                ["plain"] => (14, 1024, 512, 1024),
                ["rows", "0"] => (14, 0, 512, 1024),
                ["cols", "0"] => (14, 1024, 0, 1024),
                ["ld", "below", "rows"] => (14, 1024, 512, 1000),
                ["ld", ld] => (14, 1024, 512, number(ld)),
                ["odd", "ld"] => (14, 1024, 512, 1025),
                ["1", "x", "1"] => (14, 1, 1, 1),
                ["rows", power] => {
                    let rows = 1_u64 << power.strip_prefix("2^").unwrap().parse::<u32>().unwrap();
                    (14, rows, 1, rows as i64)
                }
                ["type", "f64"] => (1, 1024, 512, 1024),
                ["type", code] => (number(code) as c_int, 1024, 512, 1024),
                other => panic!("{other:?}"),
            };
            let (status, made) = lt.layout(dtype, rows, cols, ld);
            assert_eq!(lt.destroy("layout", made), 0);
            status.to_string()
        }
        ["set", ..] => {
            let what = words[1..].join(" ");
            let (kind, attribute, value, bytes) = match &words[1..] {
                ["batch", "count", "as", "8", "bytes"] => ("layout", 5, 4, 8),
                ["batch", "count", value, ..] => ("layout", 5, number(value), 4),
                ["stride", "2^31+1"] => ("layout", 6, (1 << 31) + 1, 8),
                ["stride", value] => ("layout", 6, number(value), 8),
                ["order", value, ..] => ("layout", 1, number(value), 4),
                ["ld", value] => ("layout", 4, number(value), 8),
                ["transa", value] => ("desc", 3, number(value), 4),
                ["pointer", "mode", value] => ("desc", 2, number(value), 4),
                ["epilogue", value] => ("desc", 7, number(value), 4),
                ["alignment", "A", value] => ("preference", 5, number(value), 4),
                ["reduction", "mask", value] => ("preference", 3, number(value), 4),
                ["workspace", "32", "MiB"] => ("preference", 1, 32 << 20, 8),
                ["workspace", "as", "4", "bytes"] => ("preference", 1, 32 << 20, 4),
                ["search", "mode", value] => ("preference", 0, number(value), 4),
                ["impl", "mask"] => ("preference", 12, 2, 8),
                // One f32; as eight bytes it is refused.
                ["waves"] => ("preference", 9, 1, 8),
                _ => panic!("{what}"),
            };
            attributes(kind).set_and_read(attribute, value, bytes)
        }
        ["heuristic,", "null", "handle"] => {
            type Heuristic = unsafe extern "C" fn(
                Object,
                Object,
                Object,
                Object,
                Object,
                Object,
                Object,
                c_int,
                *mut c_void,
                *mut c_int,
            ) -> c_int;
            let ask: Heuristic = lt.function("cublasLtMatmulAlgoGetHeuristic");
            let (mut result, mut found) = ([0_u64; 12], 0);
            let none = std::ptr::null_mut();
            // SAFETY: the places are writable; the handle is null, which the line is about.
            let status = unsafe {
                let result = result.as_mut_ptr().cast();
                ask(
                    none,
                    desc,
                    layout,
                    layout,
                    layout,
                    layout,
                    preference,
                    1,
                    result,
                    &raw mut found,
                )
            };
            assert_eq!(found, 0);
            status.to_string()
        }
        ["matmul,", "null", "handle"] => {
            type Matmul = unsafe extern "C" fn(
                Object,
                Object,
                *const c_void,
                Object,
                Object,
                Object,
                Object,
                *const c_void,
                Object,
                Object,
                Object,
                Object,
                *const c_void,
                Object,
                usize,
                Object,
            ) -> c_int;
            let multiply: Matmul = lt.function("cublasLtMatmul");
            let (one, none) = (1.0_f32, std::ptr::null_mut());
            let one = (&raw const one).cast();
            // SAFETY: no memory is named, and nothing happens without a handle.
            let status = unsafe {
                multiply(
                    none,
                    desc,
                    one,
                    none,
                    layout,
                    none,
                    layout,
                    one,
                    none,
                    layout,
                    none,
                    layout,
                    std::ptr::null(),
                    none,
                    0,
                    none,
                )
            };
            status.to_string()
        }
        ["destroy", kind, "null"] => {
            lt.destroy(kind.trim_end_matches(','), std::ptr::null_mut()).to_string()
        }
        // Made for this line: the objects of the other lines are still needed.
        ["destroy", kind] => {
            let (_, made) = match kind {
                "desc" => lt.desc(68, 0),
                "layout" => lt.layout(14, 1024, 512, 1024),
                _ => {
                    let mut made = std::ptr::null_mut();
                    let create: Create = lt.function("cublasLtMatmulPreferenceCreate");
                    // SAFETY: the place is writable.
                    (unsafe { create(&raw mut made) }, made)
                }
            };
            lt.destroy(kind, made).to_string()
        }
        _ => panic!("no such call: {call}"),
    }
}

#[test]
fn the_emulator_answers_as_the_library_does() {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the emulator has loaded it; its initialisers ran.
    let lt = Lt(unsafe { Library::new("libcublasLt.so.13") }.unwrap());
    let mut preference = std::ptr::null_mut();
    let create: Create = lt.function("cublasLtMatmulPreferenceCreate");
    // SAFETY: the place is writable.
    assert_eq!(unsafe { create(&raw mut preference) }, 0);
    let objects = [lt.desc(68, 0).1, lt.layout(14, 1024, 512, 1024).1, preference];
    let mut differing = Vec::new();
    for line in ANSWERS.lines().filter(|line| *line != NEEDS_NO_DRIVER) {
        let (call, answer) = line.split_once('\t').unwrap();
        let found = ask(&lt, objects, call);
        if found != answer {
            differing.push(format!("{call}: {found}, but cublasLt: {answer}"));
        }
    }
    // Numbers between the attributes that there are belong to no release, or to an earlier one.
    for (kind, numbers) in [
        ("desc", &[9, 27, 28, 29, 30, 42, 99, -1][..]),
        ("layout", &[14, 99, -1]),
        ("preference", &[2, 4, 10, 11, 16, 99, -1]),
    ] {
        let object =
            objects[["desc", "layout", "preference"].iter().position(|k| *k == kind).unwrap()];
        for number in numbers {
            let status = lt.kind(kind, object).set(*number, 0, 4);
            if status != 7 {
                differing.push(format!("{kind} attribute {number}: {status}, but cublasLt: 7"));
            }
        }
    }
    assert!(differing.is_empty(), "{} of them:\n{}", differing.len(), differing.join("\n"));
    for (kind, object) in ["desc", "layout", "preference"].iter().zip(objects) {
        assert_eq!(lt.destroy(kind, object), 0);
    }
    drop(context);
    // Wrong sizes, unknown numbers and nulls are findings all the same; nothing of it is "not modelled".
    for finding in emulator.finish().unwrap() {
        let known = [Class::InvalidArgument, Class::InvalidHandle];
        assert!(known.contains(&finding.class), "{finding}");
    }
}

//! What the library is told of a product, and what makes one product differ from another.

use super::super::matmul::{Arithmetic, Operand, Storage};
use super::description::Side;
use super::*;

fn shapes() -> Vec<Shape> {
    let plain = Operand::rows(0x1000, 48);
    let mut shapes = Vec::new();
    for arithmetic in [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16] {
        for (a, b) in [(plain, plain), (plain.transposed(), plain), (plain, plain.transposed())] {
            let c_storage = Storage::F32;
            let (c, bias) = (0x1008, 0x2000);
            shapes.push(Shape::new(&Product {
                m: 40,
                n: 36,
                k: 44,
                a,
                b,
                c,
                c_row_stride: 37,
                c_storage,
                accumulate: true,
                bias,
                arithmetic,
            }));
        }
    }
    for c_storage in [Storage::F32, Storage::Bf16] {
        shapes.push(Shape::new(&Product {
            m: 40,
            n: 36,
            k: 44,
            a: plain.bf16(),
            b: plain.bf16(),
            c: 0x1000,
            c_row_stride: 36,
            c_storage,
            accumulate: false,
            bias: 0,
            arithmetic: Arithmetic::Bf16,
        }));
    }
    shapes
}

#[test]
fn row_major_operands_are_columns_of_their_transposes() {
    let side = Side::new(&Operand::rows(0x1010, 50), 40, 44);
    assert_eq!((side.rows, side.columns, side.stride, side.transposed, side.alignment), (44, 40, 50, false, 16));
    // A view of [40, 44] on memory that has rows of 40.
    let side = Side::new(&Operand::rows(0x1100, 41).transposed(), 40, 44);
    assert_eq!((side.rows, side.columns, side.stride, side.transposed, side.alignment), (40, 44, 41, true, 256));
    // One row: its stride means nothing.
    assert_eq!(Side::new(&Operand::rows(4, 0), 1, 44).stride, 44);
    assert_eq!(Side::new(&Operand::rows(4, 0), 1, 44).alignment, 4);
}

#[test]
fn products_that_differ_have_different_keys() {
    let mut shapes = shapes();
    let first = shapes[0];
    shapes.push(Shape { accumulate: false, ..first });
    shapes.push(Shape { bias_alignment: 0, ..first });
    shapes.push(Shape { bias_alignment: 16, ..first });
    shapes.push(Shape { c_alignment: 4, ..first });
    shapes.push(Shape { c_row_stride: 38, ..first });
    shapes.push(Shape { sizes: (40, 36, 45), ..first });
    shapes.push(Shape { a: Side { stride: 52, ..first.a }, ..first });
    shapes.push(Shape { b: Side { alignment: 8, ..first.b }, ..first });
    let keys: std::collections::BTreeSet<String> = shapes.iter().map(Shape::key).collect();
    assert_eq!(keys.len(), shapes.len(), "{keys:?}");
}

#[test]
fn another_library_is_refused_by_what_it_lacks() {
    let reason = Library::load("libc.so.6").err().unwrap();
    assert!(reason.contains("cublasLtGetVersion"), "{reason}");
    assert_eq!(version_text(120_103), "12.1.3");
}

/// Needs the library, but no GPU: it refuses attributes of wrong sizes.
#[test]
fn the_library_takes_every_description() {
    let Some(library) = WANTED.first(Library::load).ok().map(|(_, library)| library) else {
        println!("skipped: cuBLASLt was not found");
        return;
    };
    assert!(library.version() >= 110_000);
    for shape in shapes() {
        let described = Prepared::describe(&library, &shape).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        described.set_bias(0x2000).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        Preference::new(&library, &shape).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
    }
    let wrong = Preference::new(&library, &shapes()[0]).and_then(|it| {
        it.set(sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 1_u32)
    });
    assert!(wrong.is_err(), "a size that the library does not check proves nothing");
}

//! Every dequantiser against llama.cpp's Python reference, bit for bit.
//! Golden values: `scripts/parity/gguf_dequant.py`.

use seakeep::formats::gguf::GgmlType;
use seakeep_kernels::blocks::dequantize;
use serde_json::Value;

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn every_type_equals_the_reference() {
    let golden: Value = serde_json::from_str(include_str!("data/gguf_dequant.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), GgmlType::SUPPORTED.split(", ").count());
    for case in cases {
        let ggml_type = GgmlType::from_id(case["id"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(ggml_type.name(), case["type"].as_str().unwrap());
        let (blocks, values) = (bytes(&case["blocks"]), bytes(&case["values"]));
        let (items, size) = ggml_type.block();
        assert_eq!(blocks.len() / size * items, values.len() / 4, "{ggml_type:?}");
        let mut out = vec![0.0; values.len() / 4];
        dequantize(ggml_type, &blocks, &mut out);
        for (i, (found, wanted)) in out.iter().zip(values.as_chunks::<4>().0).enumerate() {
            let wanted = f32::from_le_bytes(*wanted);
            assert_eq!(
                found.to_bits(),
                wanted.to_bits(),
                "{ggml_type:?}, value {i}: {found} and not {wanted}"
            );
        }
    }
}

//! Rotary embedding parameters against those that the transformers library computes (`fixtures/rope.py`).

use allotrope_model::ModelConfig;
use serde_json::Value;

use crate::checkpoints::Folder;

const FIXTURE: &str = include_str!("fixtures/rope.json");

/// A power of f32 numbers differs in the last bit between implementations; Llama 3's interpolation and YaRN's can make
/// four of it.
const MOST_UNITS: u32 = 4;

#[test]
fn every_kind_agrees_with_transformers() {
    let cases: Vec<Value> = serde_json::from_str(FIXTURE).unwrap();
    assert_eq!(cases.len(), 10);
    let (mut values, mut equal) = (0, 0);
    for case in cases {
        let folder = Folder::new();
        let config = ModelConfig::open(folder.write_json("config.json", &case["config"]).path()).unwrap();
        let parameters = config.rope.parameters(config.head_dim);
        let expected: Vec<u32> = serde_json::from_value(case["inverse_frequency_bits"].clone()).unwrap();
        assert_eq!(parameters.inverse_frequencies.len(), expected.len());
        for (index, (found, expected)) in parameters.inverse_frequencies.iter().zip(&expected).enumerate() {
            assert!(found.is_finite() && *found > 0.0);
            let units = found.to_bits().abs_diff(*expected);
            assert!(
                units <= MOST_UNITS,
                "{:?}, pair {index}: {found} is {units} units from {}",
                config.rope,
                f32::from_bits(*expected)
            );
            values += 1;
            equal += usize::from(units == 0);
        }
        assert_eq!(
            parameters.attention_scaling,
            case["attention_scaling"].as_f64().unwrap() as f32,
            "{:?}",
            config.rope
        );
    }
    assert!(equal * 100 >= values * 95, "only {equal} of {values} values are equal bit for bit");
}

#[test]
fn yarn_without_a_factor_takes_the_ratio_of_the_contexts() {
    let cases: Vec<Value> = serde_json::from_str(FIXTURE).unwrap();
    let mut config = cases[5]["config"].clone();
    let with_factor = ModelConfig::open(Folder::new().write_json("config.json", &config).path()).unwrap();
    config["rope_scaling"]["factor"] = Value::Null;
    let without = ModelConfig::open(Folder::new().write_json("config.json", &config).path()).unwrap();
    assert_eq!(with_factor.rope, without.rope);
}

//! The likeliest token, and one drawn with a seed.

use allotrope_cuda_emulator::machine::Random;

use super::common::{Bench, Format, Seen, words};
use super::elements::between;
use super::{Parameters, launch, sizes, texts};

/// How a row is sampled.
#[derive(Clone, Copy)]
struct Row {
    temperature: f32,
    seed: u64,
    counter: u64,
}

/// Launches two rows more than there are.
fn run(bench: &mut Bench, kernel: &str, logits: &[f32], rows: &[Row]) -> Result<Vec<usize>, String> {
    let count = rows.len();
    let vocabulary = logits.len() / count;
    let sizes = sizes(bench, 2, count);
    let logits = bench.put_floats(logits);
    let tokens = bench.put_words(&vec![POISON; count + 2]);
    bench.holds(&tokens, Format::Word);
    let mut parameters = Parameters::default().address(&sizes).address(&logits).address(&tokens);
    let mut length = 32;
    if kernel == "sample_f32" {
        let mut laid_out = Vec::new();
        for row in rows {
            laid_out.extend(row.temperature.to_le_bytes());
            laid_out.extend([0xff; 4]);
            laid_out.extend(row.seed.to_le_bytes());
            laid_out.extend(row.counter.to_le_bytes());
        }
        parameters = parameters.address(&bench.put(&laid_out));
        length = 40;
    }
    launch(bench, kernel, [count as u32 + 2, 1], 0, parameters.word(vocabulary).pad(length))?;
    match words(&tokens).split_at(count) {
        (tokens, [POISON, POISON]) => Ok(tokens.iter().map(|token| *token as usize).collect()),
        (_, behind) => Err(format!("behind the live rows {behind:x?} was written")),
    }
}

/// What is there before a kernel has run: not what a row without a token gets.
const POISON: u32 = 0xbaad_f00d;

/// What a row without a token gets.
const NO_TOKEN: usize = u32::MAX as usize;

/// The first of the greatest; none where a logit is NaN or positive infinity, or all are negative infinity.
fn likeliest(logits: &[f32]) -> usize {
    let mut best: Option<usize> = None;
    for (token, logit) in logits.iter().enumerate() {
        if logit.is_nan() || *logit == f32::INFINITY {
            return NO_TOKEN;
        }
        if *logit > best.map_or(f32::NEG_INFINITY, |best| logits[best]) {
            best = Some(token);
        }
    }
    best.unwrap_or(NO_TOKEN)
}

/// Logits with ties, and with some that are no numbers.
fn logits(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..vocabulary).map(|_| random.below(300) as f32 / 100.0 - 4.0).collect();
    match random.below(8) {
        0 => logits.fill(f32::NAN),
        1 => logits.fill(f32::NEG_INFINITY),
        2 => logits[random.below(vocabulary)] = f32::INFINITY,
        3 => logits[random.below(vocabulary)] = f32::NAN,
        4 => {
            logits.fill(f32::NEG_INFINITY);
            logits[random.below(vocabulary)] = -1e30;
        }
        _ => {}
    }
    logits
}

fn greedy(bench: &mut Bench, kernel: &str) -> Result<(), String> {
    let mut random = Random::new(bench.seed);
    let fewer = [(130, 250), (260, 380), (390, 500)].map(|(least, most)| between(&mut random, least, most));
    for vocabulary in [1, 31, fewer[0], fewer[1], fewer[2], between(&mut random, 500, 1500)] {
        let rows = between(&mut random, 1, 9);
        let logits: Vec<f32> = (0..rows).flat_map(|_| logits(&mut random, vocabulary)).collect();
        let greedy = Row { temperature: 0.0, seed: random.bits(), counter: random.bits() };
        let got = run(bench, kernel, &logits, &vec![greedy; rows])?;
        let expected: Vec<usize> = logits.chunks(vocabulary).map(likeliest).collect();
        if got != expected {
            return Err(format!("of {vocabulary} tokens {got:?}, expected {expected:?}"));
        }
    }
    Ok(())
}

pub(crate) fn check_argmax(text: &str, kernel: &str) -> Result<(), String> {
    greedy(&mut Bench::new(text).map_err(|error| error.to_string())?, kernel)
}

/// Philox4x32-10.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let [a, b] = [u64::from(c[0]) * 0xd251_1f53, u64::from(c[2]) * 0xcd9e_8d57];
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// What a token's logit and noise come to.
fn score(row: Row, logits: &[f32], token: usize) -> f64 {
    let counter = [row.counter as u32, (row.counter >> 32) as u32, token as u32 / 4, 0];
    let word = philox(counter, [row.seed as u32, (row.seed >> 32) as u32])[token % 4];
    let uniform = (f64::from(word) + 0.5) / 2f64.powi(32);
    f64::from(logits[token]) / f64::from(row.temperature) - (-(-uniform).ln_1p()).ln()
}

/// Whether two tokens of a row are as good as equally likely to be drawn, so that the last bit of a logarithm decides.
pub(crate) fn tie(seen: &Seen<'_>, row: usize, tokens: [u32; 2]) -> bool {
    if seen.kernel != "sample_f32" {
        return false;
    }
    let vocabulary = u32::from_le_bytes(seen.parameters[32..36].try_into().unwrap()) as usize;
    let laid_out = &seen.before(24)[row * 24..][..24];
    let logits: Vec<f32> = seen.before(8).as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let row_of_logits = &logits[row * vocabulary..][..vocabulary];
    let row = Row {
        temperature: f32::from_le_bytes(laid_out[..4].try_into().unwrap()),
        seed: u64::from_le_bytes(laid_out[8..16].try_into().unwrap()),
        counter: u64::from_le_bytes(laid_out[16..].try_into().unwrap()),
    };
    if !(row.temperature > 0.0) || tokens.iter().any(|token| *token as usize >= vocabulary) {
        return false;
    }
    let [a, b] = tokens.map(|token| score(row, row_of_logits, token as usize));
    (a - b).abs() <= 1e-4
}

pub(crate) fn check_sample(text: &str, kernel: &str) -> Result<(), String> {
    let mut bench = Bench::new(text).map_err(|error| error.to_string())?;
    greedy(&mut bench, kernel)?;
    let mut random = Random::new(bench.seed);
    for vocabulary in [1, 3, 130, between(&mut random, 500, 1500)] {
        let count = between(&mut random, 1, 9);
        let mut logits = super::common::uniform(&mut random, count * vocabulary);
        let temperatures = [0.1, 1.0, 3.0, -1.0];
        let rows: Vec<Row> = (0..count)
            .map(|_| Row { temperature: temperatures[random.below(4)], seed: random.bits(), counter: random.bits() })
            .collect();
        let refused: Vec<bool> = (0..count).map(|_| random.below(4) == 0).collect();
        let nothing = [f32::NAN, f32::INFINITY];
        for (row, _) in refused.iter().enumerate().filter(|(_, refused)| **refused) {
            logits[row * vocabulary + random.below(vocabulary)] = nothing[random.below(2)];
        }
        let got = run(&mut bench, kernel, &logits, &rows)?;
        for (((row, logits), refused), token) in rows.iter().zip(logits.chunks(vocabulary)).zip(refused).zip(got) {
            if refused || row.temperature < 0.0 {
                if token != NO_TOKEN {
                    return Err(format!("token {token} of a row that has none"));
                }
                continue;
            }
            let best = (0..vocabulary).map(|token| score(*row, logits, token)).fold(f64::NEG_INFINITY, f64::max);
            // Where two are as good as equal, the last bit of a logarithm decides.
            if token >= vocabulary || !(score(*row, logits, token) >= best - 1e-4) {
                return Err(format!("token {token} of {vocabulary} has not the highest score"));
            }
        }
    }
    Ok(())
}

#[test]
fn the_generator_is_philox() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
}

#[test]
fn tokens_are_drawn_with_the_probabilities_of_softmax() {
    let mut bench = Bench::new(&texts::kernel("sample", "sm_80", "sample_f32")).unwrap();
    let mut random = Random::new(bench.seed);
    let (draws, seed) = (4000, random.bits());
    let one = [0.5f32, -1.0, 2.0, 0.0, -3.0, 1.0, f32::NEG_INFINITY];
    let rows: Vec<Row> = (0..draws).map(|counter| Row { temperature: 1.3, seed, counter }).collect();
    let got = run(&mut bench, "sample_f32", &one.repeat(draws as usize), &rows).unwrap();
    let weights: Vec<f64> = one.iter().map(|logit| (f64::from(*logit) / 1.3).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (token, weight) in weights.iter().enumerate() {
        let probability = weight / total;
        let expected = probability * draws as f64;
        let drawn = got.iter().filter(|other| **other == token).count() as f64;
        let deviation = (expected * (1.0 - probability)).sqrt();
        assert!((drawn - expected).abs() <= 5.0 * deviation, "token {token}: {drawn} times, expected {expected}");
    }
}

#[test]
fn a_row_draws_the_same_token_alone_and_in_company() {
    let mut bench = Bench::new(&texts::kernel("sample", "sm_80", "sample_f32")).unwrap();
    let mut random = Random::new(bench.seed);
    let logits = super::common::uniform(&mut random, 8 * 300);
    let rows: Vec<Row> =
        (0..8).map(|_| Row { temperature: 2.0, seed: random.bits(), counter: random.bits() }).collect();
    let company = run(&mut bench, "sample_f32", &logits, &rows).unwrap();
    for (row, logits) in logits.chunks(300).enumerate() {
        assert_eq!(run(&mut bench, "sample_f32", logits, &rows[row..=row]).unwrap(), [company[row]], "row {row}");
    }
}

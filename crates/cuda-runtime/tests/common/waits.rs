//! Whether a kernel waits for the launches before it, which the emulator does not show: it begins no launch early.

/// Instructions that may access global memory, unless they name another space.
const ACCESSES: [&str; 6] = ["ld", "ldu", "st", "atom", "red", "cp"];
const OTHER_SPACES: [&str; 4] = ["param", "shared", "local", "const"];

/// Says what is wrong with the text of one kernel if it accesses global memory, or goes another way, before
/// `griddepcontrol.wait`.
pub(crate) fn waits_first(text: &str) -> Result<(), String> {
    let body = text.split_once(".entry").and_then(|(_, rest)| rest.split_once('{')).ok_or("there is no kernel")?.1;
    for line in body.lines().map(str::trim) {
        let words = line.split_whitespace().skip_while(|word| word.starts_with('@') || *word == "{");
        let Some(name) = words.into_iter().next() else { continue };
        if name.trim_end_matches(';') == "griddepcontrol.wait" {
            return Ok(());
        }
        let parts: Vec<&str> = name.trim_end_matches(';').split('.').collect();
        let named =
            |spaces: &[&str]| parts.iter().any(|part| spaces.contains(&part.split("::").next().unwrap_or(part)));
        // A copy names two spaces, and shared memory first.
        let accesses = ACCESSES.contains(&parts[0]) && (named(&["global"]) || !named(&OTHER_SPACES));
        if accesses || ["bra", "brx", "call", "ret", "exit"].contains(&parts[0]) {
            return Err(format!("`{line}` comes before the wait"));
        }
    }
    Err("it never waits".to_owned())
}

#[test]
fn an_access_before_the_wait_is_seen() {
    let kernel = |lines: &str| waits_first(&format!(".visible .entry k(.param .u64 p)\n{{\n{lines}\nret;\n}}"));
    let accesses = [
        "ld.global.nc.u32 %r1, [%rd1];",
        "@%p1 st.global.v4.f32 [%rd1], {%f1};",
        "ld.u32 %r1, [%rd1];",
        "cp.async.cg.shared.global [%r1], [%rd1], 16;",
        "red.global.add.f32 [%rd1], %f1;",
        "atom.add.u32 %r1, [%rd1], 1;",
        "@%p1 bra $L1;",
    ];
    for access in accesses {
        assert!(kernel(&format!("{access}\ngriddepcontrol.wait;")).is_err(), "{access}");
        assert!(kernel(&format!("griddepcontrol.wait;\n{access}")).is_ok(), "{access}");
        assert!(kernel(access).is_err(), "{access}");
    }
    let before =
        "ld.param.u64 %rd1, [p];\nst.shared.u32 [%r1], %r2;\ncvta.to.global.u64 %rd2, %rd1;\nadd.s32 %r1, %r2, 1;";
    assert!(kernel(&format!("{before}\n{{ griddepcontrol.wait; }}")).is_ok());
    assert!(kernel(before).is_err());
}

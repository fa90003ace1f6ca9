use super::*;

#[test]
fn arguments_that_are_cut_short_are_no_question() {
    for code in [opcode::READ, opcode::WRITE, opcode::FALLOCATE, opcode::LOOKUP] {
        for length in [0, 1, 31] {
            assert!(parse(code, &vec![7; length]).is_none(), "{code} with {length} bytes");
        }
    }
    // A write that says it has more data than came with it.
    let mut write = [0; 40 + 512];
    write[16..20].copy_from_slice(&513u32.to_le_bytes());
    assert!(parse(opcode::WRITE, &write).is_none());
    write[16..20].copy_from_slice(&512u32.to_le_bytes());
    assert!(matches!(parse(opcode::WRITE, &write), Some(Question::Write { data, .. }) if data.len() == 512));
}

#[test]
fn what_is_not_served_is_told_so() {
    for code in [0, 4, 25, 39, 52, 4096, u32::MAX] {
        assert!(matches!(parse(code, &[]), Some(Question::Other)), "{code}");
    }
}

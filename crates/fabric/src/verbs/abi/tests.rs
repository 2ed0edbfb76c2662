//! Compares with the header of rdma-core, where this machine has it.

use std::fs;
use std::mem::offset_of;
use std::process::Command;

use super::*;

/// A size, a place or a number: what C calls it, and what it is here.
struct Fact {
    c: String,
    ours: usize,
}

fn facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    macro_rules! size {
        ($($ours:ty => $theirs:literal),* $(,)?) => {
            $(facts.push(Fact { c: concat!("sizeof(", $theirs, ")").to_owned(), ours: size_of::<$ours>() });)*
        };
    }
    macro_rules! places {
        ($ours:ty => $theirs:literal: $($field:ident $(= $name:literal)?),* $(,)?) => {
            $({
                let name = [$($name,)? stringify!($field)][0];
                let c = format!("offsetof({}, {name})", $theirs);
                facts.push(Fact { c, ours: offset_of!($ours, $field) });
            })*
        };
    }
    macro_rules! numbers {
        ($($ours:ident),* $(,)?) => {
            $(facts.push(Fact { c: concat!("IBV_", stringify!($ours)).to_owned(), ours: $ours as usize });)*
        };
    }
    size! {
        ContextOps => "struct ibv_context_ops",
        CompChannel => "struct ibv_comp_channel",
        Mr => "struct ibv_mr",
        PortAttr => "struct ibv_port_attr",
        Gid => "union ibv_gid",
        QpCap => "struct ibv_qp_cap",
        QpInitAttr => "struct ibv_qp_init_attr",
        GlobalRoute => "struct ibv_global_route",
        AhAttr => "struct ibv_ah_attr",
        QpAttr => "struct ibv_qp_attr",
        Sge => "struct ibv_sge",
        RecvWr => "struct ibv_recv_wr",
        SendWr => "struct ibv_send_wr",
        Wc => "struct ibv_wc",
    }
    places!(Context => "struct ibv_context": device, ops);
    places!(ContextOps => "struct ibv_context_ops": poll_cq, req_notify_cq, post_send, post_recv);
    places!(CompChannel => "struct ibv_comp_channel": context, fd, refcnt);
    places!(Mr => "struct ibv_mr": context, pd, addr, length, handle, lkey, rkey);
    places!(Qp => "struct ibv_qp": context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num);
    places!(PortAttr => "struct ibv_port_attr":
        state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr, pkey_tbl_len,
        lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state,
        link_layer, flags, port_cap_flags2);
    places!(QpCap => "struct ibv_qp_cap":
        max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data);
    places!(QpInitAttr => "struct ibv_qp_init_attr":
        qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all);
    places!(GlobalRoute => "struct ibv_global_route":
        dgid, flow_label, sgid_index, hop_limit, traffic_class);
    places!(AhAttr => "struct ibv_ah_attr":
        grh, dlid, sl, src_path_bits, static_rate, is_global, port_num);
    places!(QpAttr => "struct ibv_qp_attr":
        qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap, ah_attr,
        alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic,
        min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit);
    places!(Sge => "struct ibv_sge": addr, length, lkey);
    places!(RecvWr => "struct ibv_recv_wr": wr_id, next, sg_list, num_sge);
    places!(SendWr => "struct ibv_send_wr":
        wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, _wr = "wr", _qp_type = "qp_type", _bind_mw = "bind_mw");
    places!(Wc => "struct ibv_wc":
        wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags, pkey_index, slid, sl,
        dlid_path_bits);
    numbers! {
        PORT_DOWN, PORT_ACTIVE, MTU_256, MTU_4096, QPT_RC, QPT_UC, QPS_INIT, QPS_RTR, QPS_RTS, QP_STATE, QP_ACCESS_FLAGS,
        QP_PKEY_INDEX, QP_PORT, QP_AV, QP_PATH_MTU, QP_TIMEOUT, QP_RETRY_CNT, QP_RNR_RETRY, QP_RQ_PSN,
        QP_MAX_QP_RD_ATOMIC, QP_MIN_RNR_TIMER, QP_SQ_PSN, QP_MAX_DEST_RD_ATOMIC, QP_CAP, QP_DEST_QPN,
        ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE, ACCESS_REMOTE_READ, WR_SEND, SEND_SIGNALED, WC_SUCCESS,
    }
    facts
}

/// Whether the compiler takes a program.
fn compiles(folder: &std::path::Path, program: &str) -> bool {
    let source = folder.join("facts.c");
    fs::write(&source, program).expect("a folder of our own");
    let output = Command::new("cc")
        .args(["-w", "-o"])
        .args([&folder.join("facts"), &source])
        .output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn structures_and_numbers_are_those_of_the_header() {
    let folder = std::env::temp_dir().join(format!("shoal-verbs-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("room for a small file");
    let outcome = compare(&folder);
    fs::remove_dir_all(&folder).expect("made above");
    if let Err(reason) = outcome {
        #[expect(
            clippy::disallowed_methods,
            reason = "whoever runs the tests knows whether this machine must have the header"
        )]
        let is_required = std::env::var_os("SHOAL_REQUIRE_VERBS_HEADERS").is_some();
        assert!(!is_required, "{reason}");
        eprintln!("SKIPPED structures_and_numbers_are_those_of_the_header: {reason}");
    }
}

fn compare(folder: &std::path::Path) -> Result<(), &'static str> {
    const INCLUDES: &str =
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\n";
    if !compiles(folder, &format!("{INCLUDES}int main(void) {{ return 0; }}")) {
        return Err(
            "there is no C compiler or no infiniband/verbs.h here; Debian has the header in libibverbs-dev",
        );
    }
    let facts = facts();
    let lines: String = facts
        .iter()
        .map(|fact| format!("printf(\"%zu\\n\", (size_t)({}));\n", fact.c))
        .collect();
    let program = format!("{INCLUDES}int main(void) {{\n{lines}return 0; }}");
    assert!(
        compiles(folder, &program),
        "the header lacks something that is used here"
    );
    let output = Command::new(folder.join("facts"))
        .output()
        .expect("it was just compiled");
    let theirs: Vec<usize> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert_eq!(theirs.len(), facts.len());
    for (fact, theirs) in facts.iter().zip(theirs) {
        assert_eq!(fact.ours, theirs, "{}", fact.c);
    }
    Ok(())
}

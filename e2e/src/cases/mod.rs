//! The tests, by subject. A new file of cases is added to [`all`].

pub mod api_loss;
pub mod away;
pub mod certificates;
pub mod chart;
pub mod cli;
pub mod clocks;
pub mod clones;
pub mod copies;
pub mod crd_rules;
pub mod crds;
pub mod csi_controller;
pub mod csi_fsgroup;
pub mod csi_killed;
pub mod csi_movers;
pub mod csi_node;
pub mod csi_pvc;
pub mod csi_retained;
pub mod csi_sanity;
pub mod csi_view;
pub mod deletion;
pub mod drain;
pub mod drained;
pub mod fence;
pub mod formats;
pub mod held;
pub mod hostile;
pub mod joins;
pub mod kept;
pub mod killpoints;
pub mod kubelet;
pub mod life;
pub mod links;
pub mod locality;
pub mod moving;
pub mod nested;
pub mod node;
pub mod partition;
pub mod peers;
pub mod pods;
pub mod pools;
pub mod renamed;
pub mod reset;
pub mod resume;
pub mod rights;
pub mod scale;
pub mod senders;
pub mod silence;
pub mod space;
pub mod stale;
pub mod taints;
pub mod talk;
pub mod tenants;
pub mod upgrades;
pub mod watched;

use crate::harness::Case;

/// Every case, in the order in which they run.
pub fn all() -> Vec<Case> {
    [
        crd_rules::cases(),
        crds::cases(),
        rights::cases(),
        life::cases(),
        deletion::cases(),
        killpoints::cases(),
        resume::cases(),
        fence::cases(),
        moving::cases(),
        nested::cases(),
        renamed::cases(),
        reset::cases(),
        cli::cases(),
        drain::cases(),
        node::cases(),
        hostile::cases(),
        peers::cases(),
        silence::cases(),
        certificates::cases(),
        senders::cases(),
        pools::cases(),
        taints::cases(),
        space::cases(),
        stale::cases(),
        talk::cases(),
        tenants::cases(),
        api_loss::cases(),
        csi_node::cases(),
        csi_fsgroup::cases(),
        csi_controller::cases(),
        csi_killed::cases(),
        csi_sanity::cases(),
        csi_view::cases(),
        kept::cases(),
        kubelet::cases(),
        joins::cases(),
        csi_pvc::cases(),
        csi_retained::cases(),
        clocks::cases(),
        clones::cases(),
        csi_movers::cases(),
        copies::cases(),
        pods::cases(),
        locality::cases(),
        chart::cases(),
        scale::cases(),
        drained::cases(),
        away::cases(),
        links::cases(),
        partition::cases(),
        held::cases(),
        formats::cases(),
        upgrades::cases(),
        watched::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

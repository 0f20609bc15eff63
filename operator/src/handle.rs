//! Which PVs are ours, and what their volume handles name ([`VolumeHandle`]).

use dotgraft_api::common::DRIVER_NAME;
use dotgraft_engine::handle::VolumeHandle;
use k8s_openapi::api::core::v1::PersistentVolume;

/// The handle of a PV of this driver.
pub fn handle_of(pv: &PersistentVolume) -> Option<VolumeHandle> {
    let csi = pv.spec.as_ref()?.csi.as_ref().filter(|c| c.driver == DRIVER_NAME)?;
    csi.volume_handle.parse().ok()
}

/// The Filesystem of a PV of this driver.
pub fn filesystem_of(pv: &PersistentVolume) -> Option<String> {
    handle_of(pv).map(|h| h.fs().to_string())
}

/// Of this driver, and with a handle that is only to read commits.
pub fn is_read_only(pv: &PersistentVolume) -> bool {
    handle_of(pv).is_some_and(VolumeHandle::is_read_only)
}

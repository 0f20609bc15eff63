//! A tenant: a namespace with a `ServiceAccount` that may there what `edit` gives, and nothing anywhere else. It acts by its real token.

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use crate::harness::Test;
use crate::harness::test::STEP;
use crate::rig::kube::Kube;
use crate::rig::wait::eventually;

/// One tenant.
pub struct Tenant {
    /// Its namespace.
    pub namespace: String,
    /// What it can do.
    pub kube: Kube,
}

impl Tenant {
    /// Makes the namespace with its `ServiceAccount`; deleted by [`Tenant::leave`].
    pub async fn come(t: &Test, suffix: &str) -> Result<Self> {
        let namespace = format!("{}-{suffix}", t.namespace);
        t.kube().kubectl(&["create", "namespace", &namespace]).await?;
        t.kube().kubectl(&["create", "serviceaccount", "dev", "-n", &namespace]).await?;
        let account = format!("--serviceaccount={namespace}:dev");
        t.kube().kubectl(&["create", "rolebinding", "dev", "-n", &namespace, "--clusterrole=edit", &account]).await?;
        let token = t.kube().kubectl(&["create", "token", "dev", "-n", &namespace, "--duration=12h"]).await?;
        let file = t.dir.join(format!("{suffix}.kubeconfig"));
        let plane = &t.rig.control_plane;
        std::fs::write(&file, plane.authority.token_kubeconfig(&plane.server, token.trim())?)?;
        let kube = Kube::new(&t.rig.kubectl(), &file).await?;
        let tenant = Self { namespace, kube };
        // The API server learns of a new RoleBinding in its own time.
        eventually("the tenant's rights", STEP, || async {
            let says = tenant.kubectl(&["auth", "can-i", "create", "dots.dotgraft.dev"]).await?;
            ensure!(says.trim() == "yes", "{says}");
            Ok(())
        })
        .await?;
        Ok(tenant)
    }

    /// Gives it every right over our kinds in its namespace, also over what only our programs write.
    pub async fn may_do_everything(&self, t: &Test) -> Result<()> {
        let rules = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "everything", "namespace": self.namespace},
            "rules": [{"apiGroups": ["dotgraft.dev"], "resources": ["*"], "verbs": ["*"]}],
        });
        t.kube().apply(&rules.to_string()).await?;
        let account = format!("--serviceaccount={}:dev", self.namespace);
        t.kube().kubectl(&["create", "rolebinding", "everything", "-n", &self.namespace, "--role=everything", &account]).await?;
        eventually("the wider rights", STEP, || async {
            ensure!(self.kubectl(&["auth", "can-i", "accept-loss", "dots.dotgraft.dev"]).await?.trim() == "yes");
            Ok(())
        })
        .await
    }

    /// kubectl in its namespace, with its token.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kube.kubectl(&[&["-n", &self.namespace], args].concat()).await
    }

    /// An object of ours in its namespace.
    pub fn object(&self, kind: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "dotgraft.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec,
        })
    }

    /// Makes an object of ours with its token.
    pub async fn create(&self, kind: &str, name: &str, spec: &Value) -> Result<Value> {
        self.kube.create(&self.namespace, &self.object(kind, name, spec)).await
    }

    /// The same is forbidden; the words must be in the answer.
    pub async fn may_not_create(&self, kind: &str, name: &str, spec: &Value, words: &str) -> Result<()> {
        let answer = self.create(kind, name, spec).await;
        let why = answer.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(why.contains(words), "to make {kind} {name}: {why:?}");
        Ok(())
    }

    /// A PVC that names an object of ours in its namespace.
    pub async fn claim(&self, name: &str, mode: &str, kind: &str, of: &str) -> Result<()> {
        self.kube
            .apply(&format!(
                "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: {}}}\nspec:\n  \
                 storageClassName: dotgraft\n  accessModes: [{mode}]\n  resources: {{requests: {{storage: 64Mi}}}}\n  \
                 dataSourceRef: {{apiGroup: dotgraft.dev, kind: {kind}, name: {of}}}\n",
                self.namespace
            ))
            .await
            .map(|_| ())
    }

    /// All that it can read: every object of ours, PVC and event of its namespace.
    pub async fn sees(&self) -> Result<String> {
        let kinds = "dots,branches,commits,replicationjobs,dotoperations,pvc,events,events.events.k8s.io";
        self.kubectl(&["get", kinds, "-o", "json"]).await
    }

    /// The namespace goes, with all that is in it.
    pub async fn leave(&self, t: &Test) -> Result<()> {
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(t.kube().client());
        api.delete(&self.namespace, &DeleteParams::background()).await.context("deleting the tenant's namespace")?;
        eventually("the tenant's namespace to be gone", STEP * 2, || async {
            ensure!(api.get_opt(&self.namespace).await?.is_none(), "it is there");
            Ok(())
        })
        .await
    }
}

//! OpenSnitch, if Debian's package is installed: started in the client's namespace, with settings of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::{Namespace, put_in_place};
use crate::supervise::{command_in, own_path};

/// Where the daemon's settings are; no option says otherwise.
const SETTINGS: &str = "/etc/opensnitchd";
const DAEMON: &str = "/usr/bin/opensnitchd";

/// The daemon and its rules.
#[derive(Debug, Clone)]
pub struct OpenSnitch {
    home: PathBuf,
}

impl OpenSnitch {
    /// Prepares settings and rules in `home` and puts them in the place of the machine's, for this run alone
    /// ([`crate::lab::seclude`]). None if the package is not installed.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn prepare(home: &Path) -> Result<Option<Self>> {
        if !Path::new(DAEMON).is_file() || !Path::new(SETTINGS).is_dir() {
            return Ok(None);
        }
        let home = home.to_owned();
        let settings = home.join("settings");
        let rules = home.join("rules");
        for folder in [&settings, &rules] {
            fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let nobody = home.join("no-user-interface.sock");
        let config = serde_json::json!({
            "Server": { "Address": format!("unix://{}", nobody.display()), "LogFile": "/dev/stdout" },
            "DefaultAction": "allow", "DefaultDuration": "once", "InterceptUnknown": false,
            "ProcMonitorMethod": "proc", "LogLevel": 3, "Firewall": "iptables",
            "Stats": { "MaxEvents": 150, "MaxStats": 25 },
        });
        write(&settings.join("default-config.json"), &config)?;
        write(&settings.join("system-fw.json"), &serde_json::json!({ "SystemRules": [] }))?;
        // What sends the load; whatever else there is gets the default.
        for (name, path) in [("load", own_path()?), ("iperf3", "/usr/bin/iperf3".into())] {
            let rule = serde_json::json!({
                "created": "2024-01-01T00:00:00Z", "updated": "2024-01-01T00:00:00Z", "name": name, "enabled": true,
                "precedence": false, "action": "allow", "duration": "always",
                "operator": { "type": "simple", "operand": "process.path", "sensitive": false, "data": path, "list": [] },
            });
            write(&rules.join(format!("{name}.json")), &rule)?;
        }
        put_in_place(&settings, Path::new(SETTINGS))?;
        Ok(Some(Self { home }))
    }

    /// What starts it in `namespace`.
    ///
    /// # Errors
    /// This program's own path cannot be found.
    pub fn command(&self, namespace: &Namespace) -> Result<Command> {
        let mut command = command_in(&namespace.path(), DAEMON)?;
        command.args(["-process-monitor-method", "proc", "-warning", "-rules-path"]).arg(self.home.join("rules"));
        Ok(command)
    }
}

fn write(path: &Path, json: &serde_json::Value) -> Result<()> {
    fs::write(path, json.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

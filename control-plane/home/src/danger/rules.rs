//! The table of patterns, and which of them a command is.
//!
//! Pure. A pattern is a row of [`PATTERNS`] and an arm of [`of_command`] (or of [`of_text`], where it is not about one command).

use std::sync::LazyLock;

use regex::Regex;

use super::shell::{Command, SHELLS};
use super::{Pattern, Weight};
use Weight::{Everywhere, Hardline, Outside};

const fn row(weight: Weight, key: &'static str, says: &'static str) -> Pattern {
    Pattern { key, says, weight }
}

/// Every pattern, the heaviest first.
pub const PATTERNS: &[Pattern] = &[
    row(Hardline, "delete_system", "it deletes the root, a home or a system directory with all that is in it"),
    row(Hardline, "format_disk", "it makes a file system or wipes the signatures of a disk"),
    row(Hardline, "write_disk", "it writes to a disk itself"),
    row(Hardline, "fork_bomb", "it starts processes without end"),
    row(Hardline, "kill_all", "it ends every process"),
    row(Hardline, "shut_down", "it stops or restarts the machine"),
    row(Everywhere, "delete_elsewhere", "it deletes a directory outside the workspace with all that is in it"),
    row(Everywhere, "write_own_rules", "it writes over SOUL.md with a command"),
    row(Everywhere, "foreign_read", "it lets the agent's own program read"),
    row(Everywhere, "foreign_edit", "it lets the agent's own program change a file"),
    row(Everywhere, "foreign_delete", "it lets the agent's own program delete something"),
    row(Everywhere, "foreign_move", "it lets the agent's own program move something"),
    row(Everywhere, "foreign_search", "it lets the agent's own program search"),
    row(Everywhere, "foreign_execute", "it lets the agent's own program run a command"),
    row(Everywhere, "foreign_fetch", "it lets the agent's own program fetch something"),
    row(Everywhere, "foreign_other", "it lets the agent's own program do something"),
    row(Outside, "delete_recursive", "it deletes a directory with all that is in it"),
    row(Outside, "delete_found", "it deletes every file that a search finds"),
    row(Outside, "delete_absolute", "it deletes a file by its absolute path"),
    row(Outside, "shred", "it destroys the content of files"),
    row(Outside, "world_writable", "it lets everybody write to files"),
    row(Outside, "set_user_id", "it makes a program run as its owner, or gives it capabilities"),
    row(Outside, "change_owner", "it changes the owner of a whole directory"),
    row(Outside, "pipe_to_shell", "it runs what another program wrote"),
    row(Outside, "eval_output", "it runs a text that is made while it runs"),
    row(Outside, "inline_script", "it runs a program that stands in its arguments"),
    row(Outside, "reverse_shell", "it opens a connection for a shell"),
    row(Outside, "git_discard", "it throws away changes that git has not kept"),
    row(Outside, "git_push_force", "it overwrites or deletes what others have in git"),
    row(Outside, "git_rewrite", "it deletes branches or history of git"),
    row(Outside, "sql_drop", "it drops a table, schema or database"),
    row(Outside, "sql_delete_all", "it deletes or changes every row of a table"),
    row(Outside, "write_system", "it writes to a system directory"),
    row(Outside, "write_shell_startup", "it changes what shells do when they start"),
    row(Outside, "write_ssh", "it changes keys or settings of SSH"),
    row(Outside, "write_secrets", "it changes a file of secrets"),
    row(Outside, "service_control", "it stops, starts or changes services"),
    row(Outside, "container_control", "it removes, stops or opens containers"),
    row(Outside, "cluster_control", "it removes or changes what runs in a cluster or cloud"),
    row(Outside, "schedule", "it plans commands for later"),
    row(Outside, "kill_processes", "it ends processes by force or by name"),
    row(Outside, "user_accounts", "it changes users, groups or passwords"),
    row(Outside, "firewall", "it changes the firewall or network interfaces"),
    row(Outside, "mounts", "it mounts or unmounts file systems"),
    row(Outside, "kernel", "it changes the running kernel"),
    row(Outside, "partitions", "it changes partitions or volumes"),
    row(Outside, "copy_blocks", "it copies blocks over a file"),
    row(Outside, "remove_packages", "it removes packages of the machine"),
    row(Outside, "mirror_delete", "it deletes what is missing on the other side"),
    row(Outside, "as_root", "it acts as another user"),
    row(Outside, "enter_namespaces", "it enters another root or other processes' namespaces"),
    row(Outside, "remote_command", "it runs a command on another machine"),
    row(Outside, "wipe_history", "it deletes the history of commands"),
    row(Outside, "control_plane", "it operates the control plane that runs this agent"),
    row(Outside, "unreadable", "it cannot be taken apart, so nobody knows what it does"),
];

/// The pattern of a key of the table.
fn known(key: &'static str) -> Option<&'static Pattern> {
    PATTERNS.iter().find(|pattern| pattern.key == key)
}

/// What a program that answers an agent's turns asks for, by the kind that it says.
pub(super) fn foreign(kind: &str) -> &'static Pattern {
    let key = match kind {
        "read" => "foreign_read",
        "edit" => "foreign_edit",
        "delete" => "foreign_delete",
        "move" => "foreign_move",
        "search" => "foreign_search",
        "execute" => "foreign_execute",
        "fetch" => "foreign_fetch",
        _ => "foreign_other",
    };
    known(key).unwrap_or(&PATTERNS[0])
}

/// A text that cannot be taken apart.
pub(super) fn unreadable() -> &'static Pattern {
    known("unreadable").unwrap_or(&PATTERNS[0])
}

/// What a whole text is.
pub(super) fn of_text(plain: &str, commands: &[Command]) -> Vec<&'static Pattern> {
    static SQL: LazyLock<[Option<Regex>; 3]> = LazyLock::new(|| {
        [
            r"(?is)\b(drop\s+(table|database|schema)|truncate\s+(table\s+)?[a-z_\x22`.]+\s*(;|$|\x22|'))",
            r"(?is)\bdelete\s+from\s+[\w.\x22`\[\]$-]+\s*($|;|'|\x22)",
            r"(?is)\bupdate\s+[\w.\x22`\[\]$-]+\s+set\s+([^;]*)",
        ]
        .map(|pattern| Regex::new(pattern).ok())
    });
    let mut keys = Vec::new();
    let dense: String = plain.chars().filter(|c| !c.is_whitespace()).collect();
    if is_fork_bomb(&dense) {
        keys.push("fork_bomb");
    }
    // Quotes are gone from words, so what a shell puts together is seen whole.
    let words: Vec<&str> = commands.iter().flat_map(|command| &command.words).map(String::as_str).collect();
    let joined = words.join(" ");
    for text in [plain, &joined] {
        let [drop, delete, update] = &*SQL;
        let has = |pattern: &Option<Regex>| pattern.as_ref().is_some_and(|pattern| pattern.is_match(text));
        if has(drop) {
            keys.push("sql_drop");
        }
        let all = update.iter().flat_map(|update| update.captures_iter(text));
        let without_where = |rest: &str| !rest.to_lowercase().contains("where");
        let every_row = all.filter_map(|found| found.get(1)).any(|rest| without_where(rest.as_str()));
        if has(delete) || every_row {
            keys.push("sql_delete_all");
        }
    }
    if plain.contains("/dev/tcp/") || plain.contains("/dev/udp/") {
        keys.push("reverse_shell");
    }
    keys.into_iter().filter_map(known).collect()
}

/// `name(){ name|name& };name`, without white space.
fn is_fork_bomb(dense: &str) -> bool {
    dense.match_indices("(){").any(|(at, _)| {
        let before = dense.get(..at).unwrap_or_default();
        let name = before.rsplit([';', '&', '|', '(', ')', '{', '}']).next().unwrap_or_default();
        let name = name.trim_start_matches("function");
        let body = dense.get(at..).unwrap_or_default();
        !name.is_empty() && body.contains(&format!("{name}|{name}"))
    })
}

/// What one command is.
pub(super) fn of_command(command: &Command) -> Vec<&'static Pattern> {
    let mut keys: Vec<&'static str> = Vec::new();
    for file in &command.writes {
        keys.extend(written_to(file));
    }
    keys.extend(by_program(command));
    keys.into_iter().filter_map(known).collect()
}

/// What writing a file with a file tool is.
pub(super) fn written(path: &str) -> Vec<&'static Pattern> {
    // A file tool edits SOUL.md with what it says before the model's eyes; that is its use.
    written_to(path).into_iter().filter(|key| *key != "write_own_rules").filter_map(known).collect()
}

fn by_program(command: &Command) -> Vec<&'static str> {
    let first = command.operands().next().unwrap_or_default();
    let program = command.program();
    let mut keys = Vec::new();
    let mut when = |is: bool, key: &'static str| {
        if is {
            keys.push(key);
        }
    };
    match program {
        "rm" | "unlink" | "rmdir" => {
            let recursive = command.has("rR", &["recursive"]) && program == "rm";
            let deleted: Vec<Place> = command.operands().map(Place::of).collect();
            let everything = recursive && deleted.contains(&Place::System);
            when(everything || command.has("", &["no-preserve-root"]), "delete_system");
            when(recursive && deleted.contains(&Place::Elsewhere), "delete_elsewhere");
            when(recursive, "delete_recursive");
            when(
                !recursive && command.operands().any(|path| path.starts_with('/') && !path.starts_with("/tmp/")),
                "delete_absolute",
            );
        }
        "find" | "fd" => {
            let removes = |word: &String| word == "rm" || word.ends_with("/rm") || word == "shred" || word == "unlink";
            let deletes = command.arguments().iter().any(|word| word == "-delete" || removes(word));
            when(deletes && Place::of(first) == Place::System, "delete_system");
            when(deletes, "delete_found");
        }
        "mkfs" | "mke2fs" | "wipefs" | "mkswap" | "mkdosfs" | "newfs" => when(true, "format_disk"),
        name if name.starts_with("mkfs.") => when(true, "format_disk"),
        "dd" => {
            let output = command.arguments().iter().find_map(|word| word.strip_prefix("of="));
            when(output.is_some_and(is_disk), "write_disk");
            when(output.is_some(), "copy_blocks");
        }
        "blkdiscard" | "hdparm" | "badblocks" => when(command.operands().any(is_disk), "write_disk"),
        "shred" | "wipe" | "srm" => {
            when(command.operands().any(is_disk), "write_disk");
            when(true, "shred");
        }
        "truncate" => when(true, "shred"),
        "cp" | "mv" | "install" | "ln" | "rsync" | "tee" | "sponge" | "scp" => {
            let targets: Vec<&str> = match program {
                "tee" | "sponge" => command.operands().collect(),
                _ => command.operands().last().into_iter().collect(),
            };
            for target in targets {
                for key in written_to(target) {
                    when(true, key);
                }
            }
            when(
                program == "rsync" && command.arguments().iter().any(|word| word.starts_with("--del")),
                "mirror_delete",
            );
        }
        "sed" | "perl" if command.has("i", &["in-place"]) => {
            for key in command.operands().flat_map(written_to) {
                when(true, key);
            }
            when(program == "perl" && command.has("eE", &[]), "inline_script");
        }
        "chmod" => {
            let open = |word: &&str| {
                let digits = word.trim_start_matches('0');
                let mode = word.len() >= 3 && word.chars().all(|c| c.is_digit(8));
                mode && digits.ends_with(['2', '3', '6', '7'])
                    || word.split(',').any(|part| {
                        let (who, what) = part.split_once(['+', '=']).unwrap_or((part, ""));
                        (who.contains(['o', 'a']) || who.is_empty()) && what.contains('w')
                    })
            };
            let special = |word: &&str| {
                word.len() == 4 && word.starts_with(['2', '4', '6', '7']) && word.chars().all(|c| c.is_digit(8))
                    || word.split_once(['+', '=']).is_some_and(|(_, what)| what.contains('s'))
            };
            when(command.operands().any(|word| open(&word)), "world_writable");
            when(command.operands().any(|word| special(&word)), "set_user_id");
        }
        "setcap" => when(true, "set_user_id"),
        "chown" | "chgrp" => when(command.has("R", &["recursive"]), "change_owner"),
        "eval" | "source" | "." => {
            when(command.arguments().iter().any(|word| word.contains("$()") || word.contains("<()")), "eval_output");
            when(program != "eval" && first == "/dev/stdin", "pipe_to_shell");
        }
        "git" => git(command, &mut when),
        "systemctl" | "service" | "rc-service" | "launchctl" | "initctl" | "sv" => {
            let words: Vec<&str> = command.operands().collect();
            let stops = ["poweroff", "reboot", "halt", "kexec", "suspend", "hibernate", "rescue", "emergency", "exit"];
            when(program == "systemctl" && words.iter().any(|word| stops.contains(word)), "shut_down");
            let looks = [
                "status",
                "show",
                "cat",
                "list-units",
                "list-unit-files",
                "is-active",
                "is-enabled",
                "list",
                "--status-all",
            ];
            let quiet = words.is_empty() || words.iter().any(|word| looks.contains(word));
            when(!quiet, "service_control");
        }
        "shutdown" | "reboot" | "halt" | "poweroff" => when(true, "shut_down"),
        "init" | "telinit" => when(["0", "6"].contains(&first), "shut_down"),
        "kill" => {
            let last = command.arguments().last().map_or("", String::as_str);
            when(last == "-1", "kill_all");
            when(
                command.arguments().iter().any(|word| ["-9", "-KILL", "-SIGKILL"].contains(&word.as_str())),
                "kill_processes",
            );
        }
        "killall5" => when(true, "kill_all"),
        "pkill" | "killall" | "skill" | "xkill" => when(true, "kill_processes"),
        "docker" | "podman" | "nerdctl" | "docker-compose" => {
            let acts = ["rm", "rmi", "stop", "kill", "restart", "prune", "down", "exec", "remove"];
            let opens = command.has("v", &["privileged", "volume", "mount", "pid"])
                && command.operands().any(|word| word == "run");
            when(command.operands().any(|word| acts.contains(&word)) || opens, "container_control");
        }
        "kubectl" | "oc" | "helm" | "terraform" | "tofu" | "pulumi" | "aws" | "gcloud" | "az" | "doctl" | "gsutil" => {
            let acts = [
                "delete",
                "drain",
                "cordon",
                "scale",
                "uninstall",
                "destroy",
                "apply",
                "rb",
                "rm",
                "terminate-instances",
                "replace",
            ];
            let deletes = |word: &str| acts.contains(&word) || word.starts_with("delete-") || word == "exec";
            when(command.operands().any(deletes), "cluster_control");
        }
        "crontab" => when(!command.has("l", &[]) || command.has("re", &[]), "schedule"),
        "at" | "batch" | "systemd-run" => when(true, "schedule"),
        "useradd" | "userdel" | "usermod" | "groupadd" | "groupdel" | "groupmod" | "passwd" | "chpasswd" | "visudo"
        | "adduser" | "deluser" | "gpasswd" | "vipw" => when(true, "user_accounts"),
        "iptables" | "ip6tables" | "nft" | "ufw" | "firewall-cmd" | "ipset" => {
            when(!command.has("LS", &["list"]), "firewall")
        }
        "ip" | "ifconfig" | "route" => {
            when(
                command.operands().any(|word| ["add", "del", "delete", "set", "flush", "down", "up"].contains(&word)),
                "firewall",
            );
        }
        "mount" | "umount" | "swapoff" | "swapon" | "losetup" => when(!command.arguments().is_empty(), "mounts"),
        "insmod" | "rmmod" | "modprobe" | "kexec" => when(true, "kernel"),
        "sysctl" => when(command.has("wp", &["write", "load"]) || first.contains('='), "kernel"),
        "fdisk" | "sfdisk" | "cfdisk" | "gdisk" | "sgdisk" | "parted" | "cryptsetup" | "lvremove" | "vgremove"
        | "pvremove" | "zpool" | "mdadm" => when(!command.has("l", &["list"]), "partitions"),
        "apt" | "apt-get" | "aptitude" | "dnf" | "yum" | "zypper" | "apk" | "pacman" | "dpkg" | "rpm" | "snap"
        | "flatpak" => {
            let acts = ["remove", "purge", "autoremove", "erase", "del", "uninstall", "rm"];
            let flags = match program {
                "pacman" => command.has("R", &["remove"]),
                "dpkg" => command.has("rP", &["remove", "purge"]),
                "rpm" => command.has("e", &["erase"]),
                _ => false,
            };
            when(flags || command.operands().any(|word| acts.contains(&word)), "remove_packages");
        }
        "sudo" | "doas" | "su" | "runuser" | "pkexec" => when(true, "as_root"),
        "nsenter" | "chroot" | "pivot_root" => when(true, "enter_namespaces"),
        "ssh" => when(command.operands().count() > 1, "remote_command"),
        "history" => when(command.has("cdw", &[]), "wipe_history"),
        "nc" | "ncat" | "netcat" | "socat" => {
            let runs = command.has("ec", &["exec", "sh-exec"])
                || command.arguments().iter().any(|word| word.to_lowercase().contains("exec:"));
            when(runs, "reverse_shell");
        }
        "hermesctl" | "hermes-control-plane" | "hermes-worker" => when(true, "control_plane"),
        name if is_interpreter(name) => {
            let flags: (&str, &[&str]) = match name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') {
                "python" | "pypy" => ("c", &[]),
                "php" => ("r", &["run"]),
                _ => ("eEp", &["eval", "print"]),
            };
            when(command.has(flags.0, flags.1), "inline_script");
            when(command.piped && command.operands().all(|word| word == "-"), "pipe_to_shell");
        }
        name if SHELLS.contains(&name) => {
            let file = command.operands().any(|word| word != "-" && word != "/dev/stdin");
            when(command.piped && !command.has("c", &[]) && (!file || command.has("s", &[])), "pipe_to_shell");
            when(command.arguments().iter().any(|word| word == "<()"), "pipe_to_shell");
            when(command.arguments().iter().any(|word| word.contains("$()")), "eval_output");
        }
        // What a command's output names is run.
        name if name.contains('$') => when(true, "eval_output"),
        _ => {}
    }
    keys
}

fn is_interpreter(name: &str) -> bool {
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    ["python", "pypy", "perl", "ruby", "node", "deno", "bun", "php", "lua", "osascript"].contains(&plain)
}

fn git(command: &Command, when: &mut impl FnMut(bool, &'static str)) {
    let mut words = command.arguments().iter();
    // `git -C dir -c key=value name …`
    let name = loop {
        match words.next().map(String::as_str) {
            Some("-C" | "-c" | "--git-dir" | "--work-tree") => {
                words.next();
            }
            Some(flag) if flag.starts_with('-') => {}
            other => break other.unwrap_or_default(),
        }
    };
    let rest: Vec<String> = std::iter::once(name.to_owned()).chain(words.cloned()).collect();
    let command = Command { words: rest, ..Command::default() };
    let first = command.operands().next().unwrap_or_default();
    let has = |word: &str| command.arguments().iter().any(|argument| argument == word);
    match name {
        "reset" => when(has("--hard") || has("--merge"), "git_discard"),
        "clean" => when(command.has("f", &["force"]), "git_discard"),
        "checkout" | "restore" => {
            let force = command.has("f", &["force"]);
            when(force || has("--") || has(".") || name == "restore" && !has("--staged"), "git_discard");
        }
        "stash" => when(["clear", "drop"].contains(&first), "git_discard"),
        "push" => {
            let force =
                command.has("fd", &["force", "force-with-lease", "force-if-includes", "delete", "mirror", "prune"]);
            when(
                force || command.operands().any(|word| word.starts_with('+') || word.starts_with(':')),
                "git_push_force",
            );
        }
        "branch" | "tag" => when(command.has("Dd", &["delete"]), "git_rewrite"),
        "filter-branch" | "filter-repo" | "update-ref" | "replace" => when(true, "git_rewrite"),
        "reflog" => when(["expire", "delete"].contains(&first), "git_rewrite"),
        "gc" => when(command.arguments().iter().any(|word| word.starts_with("--prune")), "git_rewrite"),
        _ => {}
    }
}

/// What lies at a path that is deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The root, a home as a whole, or a directory of the system.
    System,
    /// Outside the directory where commands begin.
    Elsewhere,
    /// Below it, or nobody knows.
    Here,
}

/// Directories that belong to the system as a whole, with what stands directly in them.
const SYSTEM: [&str; 19] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "media", "mnt", "opt", "proc", "root", "run", "sbin",
    "srv", "sys", "usr", "var",
];

impl Place {
    fn of(path: &str) -> Self {
        let (parts, beyond) = parts(path);
        let home = ["~", "$HOME", "$home"].iter().any(|name| parts.first() == Some(name));
        // `dir/*` is all of it.
        let whole: Vec<&str> = match parts.split_last() {
            Some((last, rest)) if ["*", ".*", "."].contains(last) => rest.to_vec(),
            _ => parts.clone(),
        };
        if home && whole.len() <= 1 || path.starts_with('~') && whole.len() == 1 && !path.contains('/') {
            return Self::System;
        }
        if !path.starts_with('/') {
            return if beyond || home && parts.len() > 1 && parts.contains(&"..") {
                Self::Elsewhere
            } else {
                Self::Here
            };
        }
        match whole.as_slice() {
            [] => Self::System,
            ["home" | "Users", ..] if whole.len() <= 2 => Self::System,
            ["Users" | "System" | "Library" | "Applications"] => Self::System,
            [first] if SYSTEM.contains(first) => Self::System,
            ["usr" | "etc" | "var" | "lib" | "boot", _] => Self::System,
            ["tmp", ..] => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

/// The parts of a path, without those that lead back; whether it leads above where it begins.
fn parts(path: &str) -> (Vec<&str>, bool) {
    let (mut parts, mut beyond) = (Vec::new(), false);
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => beyond |= parts.pop().is_none() && !path.starts_with('/'),
            part => parts.push(part),
        }
    }
    (parts, beyond)
}

fn is_disk(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/dev/") else { return false };
    let disks = [
        "sd", "hd", "vd", "xvd", "nvme", "mmcblk", "disk", "rdisk", "mapper/", "md", "dm-", "loop", "ram", "mem",
        "kmem",
    ];
    disks.iter().any(|disk| name.starts_with(disk))
}

/// What writing to this file is.
fn written_to(path: &str) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let (parts, _) = parts(path);
    let name = parts.last().copied().unwrap_or_default();
    if is_disk(path) {
        keys.push("write_disk");
    }
    let harmless = ["/dev/null", "/dev/stdout", "/dev/stderr", "/dev/tty", "/dev/fd"];
    let in_system = path.starts_with('/')
        && parts.first().is_some_and(|first| {
            SYSTEM.contains(first) && !["home", "root", "mnt", "media", "run", "srv", "var", "opt"].contains(first)
        });
    let in_var = path.starts_with('/') && matches!(parts.as_slice(), ["var", "spool" | "lib" | "log", ..]);
    if (in_system || in_var) && !harmless.iter().any(|known| path.starts_with(known)) {
        keys.push("write_system");
    }
    let startup = [
        ".bashrc",
        ".bash_profile",
        ".bash_login",
        ".bash_logout",
        ".profile",
        ".zshrc",
        ".zprofile",
        ".zshenv",
        ".zlogin",
        ".kshrc",
        ".cshrc",
        ".tcshrc",
        "config.fish",
        ".inputrc",
    ];
    if startup.contains(&name) {
        keys.push("write_shell_startup");
    }
    if parts.contains(&".ssh")
        || name == "authorized_keys"
        || name.starts_with("id_rsa")
        || name.starts_with("id_ed25519")
    {
        keys.push("write_ssh");
    }
    let secret_files =
        [".env", ".netrc", ".pgpass", ".npmrc", ".pypirc", "auth.json", ".git-credentials", "credentials"];
    let secret_dirs = [".aws", ".kube", ".gnupg", ".docker"];
    if secret_files.contains(&name) || name.starts_with(".env.") || parts.iter().any(|part| secret_dirs.contains(part))
    {
        keys.push("write_secrets");
    }
    if name == "SOUL.md" {
        keys.push("write_own_rules");
    }
    keys
}

//! Apache Kafka: one node with KRaft, on the JVM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use super::{INSTALL_TIMEOUT, LaunchOptions, SecureListener, Size, log_file, write_private};
use crate::{Error, Process, cache, ports};

/// The version of Apache Kafka, the same as in docker-compose.yaml.
pub const KAFKA_VERSION: &str = "4.1.1";
/// A version of Apache Kafka before 4, which many clusters still run.
pub const OLDER_KAFKA_VERSION: &str = "3.9.1";
/// The oldest Java on which Kafka 4's broker runs.
const JAVA_VERSION: u32 = 17;
/// Time for `kafka-storage format`.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
/// In the directory of a Kafka broker: its settings and its data.
const PROPERTIES: &str = "server.properties";
pub(super) const DATA: &str = "data";
/// A cluster of one node can have any cluster id.
const CLUSTER_ID: &str = "5L6g3nShT-eMCtK--X86sw";

/// Whether this version is installed, and a Java that runs it.
pub(super) fn is_installed(version: &str) -> bool {
    jars(version).join("complete").is_file() && java().is_ok()
}

/// The directory of its jars.
fn jars(version: &str) -> PathBuf {
    cache::directory().join(format!("kafka-{version}"))
}

/// Downloads the jars of this version by Maven.
pub(super) async fn install(version: &str) -> Result<(), Error> {
    java()?;
    let (jars, pom) = (jars(version), cache::directory().join(format!("kafka-{version}-pom.xml")));
    fs::write(
        &pom,
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n\
             <modelVersion>4.0.0</modelVersion><groupId>stack</groupId><artifactId>kafka</artifactId><version>1</version>\n\
             <dependencies>\n\
             <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>\n\
             <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>\n\
             </dependencies></project>\n"
        ),
    )?;
    Process::builder("Maven", "mvn", cache::directory().join("kafka-install.log"))
        .args(["-q", "-B", "-f"])
        .args([&pom])
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .args([format!("-DoutputDirectory={}", jars.display())])
        // Java decodes paths by the locale.
        .envs([("LC_ALL", "C.UTF-8")])
        .run(INSTALL_TIMEOUT)
        .await?;
    Ok(fs::write(jars.join("complete"), "")?)
}

/// Starts a broker with its data in `directory`, and formats the directory the first time.
pub(super) async fn launch(
    version: &str,
    directory: &Path,
    port: u16,
    options: &LaunchOptions,
) -> Result<Process, Error> {
    let java = java()?;
    let jars = jars(version);
    if jars.as_os_str().as_encoded_bytes().contains(&b':') {
        return Err(Error::new(format!(
            "the path {} contains a colon, which separates the entries of Java's class path: choose another \
             PATIENT_MANAGEMENT_CACHE",
            jars.display()
        )));
    }
    // Only this node connects to the controller.
    let controller = ports::free();
    // With a secure listener, it has passwords.
    write_private(&directory.join(PROPERTIES), &server_properties(port, controller, options))?;
    if let Some(secure) = &options.secure {
        secure.write(directory)?;
    }
    let memory: &[&str] = match options.size {
        Size::Small => &["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
        Size::Full => &["-Xms128m", "-Xmx512m"],
    };
    let prepare = |class: &str, memory: &[&str]| {
        Process::builder("Apache Kafka", &java, log_file(directory))
            .args(memory)
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .args([jars.join("*")])
            .args([class])
            // Java decodes paths by the locale.
            .envs([("LC_ALL", "C.UTF-8")])
            .directory(directory)
    };
    if !directory.join(DATA).join("meta.properties").is_file() {
        prepare("kafka.tools.StorageTool", &["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["format", "--ignore-formatted", "--cluster-id", CLUSTER_ID, "--config", PROPERTIES])
            .args(options.secure.iter().flat_map(SecureListener::format_arguments))
            .run(FORMAT_TIMEOUT)
            .await?;
    }
    prepare("kafka.Kafka", memory).args([PROPERTIES]).start()
}

fn server_properties(port: u16, controller: u16, options: &LaunchOptions) -> String {
    let LaunchOptions { advertised, extra, secure, .. } = options;
    let secure = secure.as_ref().map(|secure| secure.properties(port, controller)).unwrap_or_default();
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}\n\
         controller.listener.names=CONTROLLER\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         # Relative to the working directory: in an absolute path, commas and backslashes would have to be escaped.\n\
         log.dirs={DATA}\n\
         # The services create the topics, with the number of partitions from their settings.\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         # A single node with few clients needs few threads and a small buffer for compaction.\n\
         num.network.threads=2\n\
         num.io.threads=2\n\
         log.cleaner.dedupe.buffer.size=4194304\n\
         {secure}{extra}\n"
    )
}

/// The Java that runs Kafka: from `JAVA_HOME`, else from the PATH.
fn java() -> Result<PathBuf, Error> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let java = home.filter(|java| java.is_file()).unwrap_or_else(|| "java".into());
    let output = Command::new(&java).arg("-version").output();
    let output = output.map_err(|error| {
        Error::new(format!("Java {JAVA_VERSION} or later is not installed ({}: {error})", java.display()))
    })?;
    match java_version(&output) {
        Some(version) if version >= JAVA_VERSION => Ok(java),
        Some(version) => {
            Err(Error::new(format!("Apache Kafka needs Java {JAVA_VERSION} or later; this is Java {version}")))
        }
        None => Err(Error::of_output(
            format!(
                "Apache Kafka needs Java {JAVA_VERSION} or later; {} -version prints no version ({})",
                java.display(),
                output.status
            ),
            &output,
        )),
    }
}

/// The major version in the output of `java -version`: in a line such as `openjdk version "17.0.15" 2025-04-15`. Other
/// lines, such as one about `JAVA_TOOL_OPTIONS`, may precede it.
fn java_version(output: &Output) -> Option<u32> {
    [&output.stderr, &output.stdout].iter().find_map(|stream| {
        String::from_utf8_lossy(stream).lines().find_map(|line| {
            let (name, version) = line.split_once(" version \"")?;
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            version.split(|c: char| !c.is_ascii_digit()).next().filter(|_| is_name)?.parse().ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_java_is_parsed() {
        let printed = |text: &str| Output { status: Default::default(), stdout: Vec::new(), stderr: text.into() };
        assert_eq!(java_version(&printed("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK")), Some(17));
        assert_eq!(java_version(&printed("openjdk version \"25\" 2025-09-16")), Some(25));
        assert_eq!(java_version(&printed("openjdk version \"25-ea\" 2025-09-16")), Some(25));
        assert_eq!(java_version(&printed("java version \"1.8.0_402\"")), Some(1));
        assert_eq!(java_version(&printed("command not found")), None);
        let options = "Picked up JAVA_TOOL_OPTIONS: -XX:OnOutOfMemoryError=\"kill -9 %p\" -Da=\"b version \"9\"\"\n";
        assert_eq!(java_version(&printed(options)), None);
        assert_eq!(java_version(&printed(&format!("{options}openjdk version \"21.0.1\" 2023-10-17\n"))), Some(21));
    }
}
